"""The processes of a run that torchrun started: who they are, what they tell each other, and how they end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from sparsekern.growth.ranks import Ranks, find_ranks
from sparsekern.nn import SparseLayer
from sparsekern.training.rendezvous import find_store

T = TypeVar("T")

TIMEOUT = 600.0  # seconds that a process waits for another; one that ended is noticed at once


class FirstFailed(Exception):
    """What the first process did for all failed there, and is reported there."""


@dataclass(frozen=True)
class Processes:
    """The `count` processes of a run, of which this is `number`. The first one alone writes files and prints.

    All methods are called on all of them alike.
    """

    number: int = 0
    count: int = 1
    ranks: Ranks | None = None

    @property
    def leads(self) -> bool:
        return self.number == 0

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns, done by the first process. Raises what it raises there, and FirstFailed elsewhere."""
        if self.ranks is None:
            return work()
        done: list[Any] = [False, None]
        try:
            if self.leads:
                done = [True, work()]
        finally:
            done = self.ranks.gather_objects(done)[0]
        if not done[0]:
            raise FirstFailed
        return done[1]

    def gather(self, mine: T) -> list[T]:
        """Each process's, in their order."""
        return [mine] if self.ranks is None else self.ranks.gather_objects(mine)

    def most(self, mine: int) -> int:
        """The largest of the processes' numbers."""
        return mine if self.ranks is None else max(each for (each,) in self.ranks.gather([mine]))

    def all_say(self, mine: bool) -> bool:
        """Whether all processes say yes."""
        return not self.most(not mine)

    def sums(self, mine: Sequence[float]) -> list[float]:
        """The processes' numbers added up."""
        if self.ranks is None:
            return list(mine)
        return self.ranks.add_up(torch.tensor(mine, dtype=torch.float64, device="cpu")).tolist()

    def share_buffers(self, model: nn.Module) -> None:
        """The first process's norm statistics, as DistributedDataParallel shares them before each step."""
        if self.ranks is None:
            return
        for module in model.modules():
            if not isinstance(module, SparseLayer):  # whose buffers are the edges, the same everywhere
                for buffer in module.buffers(recurse=False):
                    buffer.copy_(self.ranks.take_first(buffer))


def processes() -> Processes:
    """Of the process group that this process is in; a single one where there is none."""
    ranks = find_ranks(nn.Module(), None)
    return Processes() if ranks is None else Processes(ranks.place, len(ranks), ranks)


def join(timeout: float = TIMEOUT) -> Processes:
    """Makes one group of the processes that torchrun started: gloo, and NCCL for what is on a GPU.

    Args:
        timeout: seconds that each waits for the others, now and in all that they do together; more is an error.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"--timeout is {timeout:g}; expected seconds above 0")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not dist.is_torchelastic_launched():
        return Processes()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    most = timedelta(seconds=timeout)
    store, number, count = find_store(most)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=most)
    return processes()


def leave() -> None:
    """The orderly end, on all processes. After an error a process just ends, for others may be waiting for it."""
    dist.destroy_process_group()
