"""What the processes of a data-parallel run tell each other, so that all of them hold one topology."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.backends.choice import topology_of
from sparsekern.nn.layer import SparseLayer

ALONE: Literal["alone"] = "alone"
# A process group, None for the one that the model trains in, or ALONE.
Group = Any

_BUCKET = 1 << 22  # numbers that are added up in one collective
_INDICES = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "permutation")

_looked_through: WeakSet[DistributedDataParallel] = WeakSet()
# Gloo groups of our own, by the group whose ranks they have.
_own_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class RanksDiffer(RuntimeError):
    """What is to be the same on all ranks is not; the message names it and the ranks."""


class Ranks:
    """The ranks that train one model together. Made on all of them at once.

    Collectives go through a gloo group of these ranks, apart from the group that DistributedDataParallel sends
    gradients through: the two may come in another order on another rank. What they carry is on the CPU, where
    topologies are worked out anyway.

    Attributes:
        members: their global ranks.
        place: this process's place among them.
    """

    def __init__(self, group: Any) -> None:
        self.members: list[int] = dist.get_process_group_ranks(group)
        self.place = dist.get_rank(group)
        self._group = _own_group(group)

    def __len__(self) -> int:
        return len(self.members)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Each rank's numbers (int64, as many on every rank), in the order of ``members``."""
        mine = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        all_of_them = [torch.empty_like(mine) for _ in self.members]
        dist.all_gather(all_of_them, mine, group=self._group)
        return [each.tolist() for each in all_of_them]

    def gather_objects(self, mine: Any) -> list[Any]:
        """Each rank's object, pickled, in the order of ``members``."""
        all_of_them: list[Any] = [None] * len(self)
        dist.all_gather_object(all_of_them, mine, group=self._group)
        return all_of_them

    def take_first(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, of the same shape and dtype on every rank, on the CPU."""
        # Bytes: gloo does not know every dtype.
        content = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if content.numel():
            dist.broadcast(content.view(-1).view(torch.uint8), self.members[0], group=self._group)
        return content

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks: in place where the tensor is contiguous and on the CPU."""
        total = tensor.cpu().contiguous()
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Their means over the ranks, of few collectives. (n,) each, of the same sizes and dtypes on every rank."""
        means: list[Tensor] = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.cpu() for tensor in bucket])
            dist.all_reduce(flat, group=self._group)
            parts = flat.div_(len(self)).split([tensor.numel() for tensor in bucket])
            means += [part.to(tensor.device) for part, tensor in zip(parts, bucket, strict=True)]
        return means

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each rank's part for this one, in the order of ``members``, to whom ``parts`` go in theirs.

        (n,) each on the CPU, of one dtype on all ranks, of any size.
        """
        sizes = torch.tensor([part.numel() * part.element_size() for part in parts], device="cpu")
        theirs = torch.empty_like(sizes)
        dist.all_to_all_single(theirs, sizes, group=self._group)
        arriving = theirs.tolist()
        received = torch.empty(sum(arriving), dtype=torch.uint8, device="cpu")
        leaving = torch.cat([part.view(torch.uint8) for part in parts])
        dist.all_to_all_single(received, leaving, arriving, sizes.tolist(), group=self._group)
        # Copies: a view of another type has to begin where one of its numbers may.
        return [part.clone().view(parts[0].dtype) for part in received.split(arriving)]

    def split(self, items: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Global ranks whose item equals the first rank's, and those whose does not."""
        same = [member for member, item in zip(self.members, items, strict=True) if item == items[0]]
        return same, [member for member in self.members if member not in same]


class GlobalBatch:
    """The batch of all ranks at one layer: ``total`` rows, of which this rank has those from ``first`` on.

    A sum over the rows is the sum of the ranks' sums; a random sign of a row is that which it has where one process
    has the whole batch, with the ranks' parts in their order.
    """

    def __init__(self, ranks: Ranks | None = None, first: int = 0, total: int | None = None) -> None:
        self.ranks = ranks
        self.first = first
        self.total = total

    def sums(self, layer: SparseLayer, part: Callable[[], tuple[Tensor, Tensor]], empty: bool) -> tuple[Tensor, Tensor]:
        """A layer's (groups, columns) sums of its inputs and (rows,) of its output gradients over all batch rows.

        ``part`` makes those over this rank's rows; not called where that has none. (rows + groups * columns) float64
        numbers are sent. The gradients are those of the mean of the ranks' losses, as in DistributedDataParallel: a
        draw by the sums is not free of their scale, other than by a power of 2.
        """
        if self.ranks is None:
            return part()
        rows, columns = layer.matrix_shape
        groups = getattr(layer, "groups", 1)
        if empty:
            both = torch.zeros(groups * columns + rows, dtype=torch.float64, device="cpu")
        else:
            both = torch.cat([sums.flatten().to("cpu", torch.float64) for sums in part()])
        by_column, by_row = self.ranks.add_up(both).split([groups * columns, rows])
        return by_column.view(groups, columns), by_row.div_(len(self.ranks))

    def signs(self, size: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
        """int8 of ``size`` on the device, -1 or 1 for each of this rank's rows; all rows' are drawn on every rank."""
        count = torch.Size(size).numel()
        total = count if self.total is None else self.total
        drawn: Tensor = topology_of(device).signs((total,), device, generator)
        return drawn[self.first : self.first + count].view(*size)


WHOLE_BATCH = GlobalBatch()


def find_ranks(model: nn.Module, process_group: Group) -> Ranks | None:
    """The ranks that the model trains on; None for a single one.

    Those of ``process_group`` if given, else of the DistributedDataParallel that the model is or holds, else all.

    Raises:
        TypeError, ValueError: for what is no process group, or one that this process is not in.
    """
    if isinstance(process_group, str) and process_group == ALONE:
        return None
    if isinstance(process_group, int):  # what new_group returns to those that are not in it
        raise ValueError(f"process_group is {process_group}: this process is not in the group")
    if isinstance(process_group, str):
        raise ValueError(f"process_group is {process_group!r}; expected a ProcessGroup, None or {ALONE!r}")
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group is a {type(process_group).__name__}; expected a ProcessGroup, None or {ALONE!r}"
        )
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if process_group is None:
        parallel = (module for module in model.modules() if isinstance(module, DistributedDataParallel))
        process_group = next((module.process_group for module in parallel), dist.group.WORLD)
    return Ranks(process_group) if dist.get_world_size(process_group) > 1 else None


def keep_indices_home(model: nn.Module) -> None:
    """Has DistributedDataParallel no longer send sparse layers' indices, as it does all buffers at each forward.

    All ranks hold the same. Where the model is not wrapped yet, or is inside of what is wrapped, the first forward
    call in a DistributedDataParallel sees to it.
    """
    wrapped = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    for parallel in wrapped:
        _ignore_indices(parallel)
    if wrapped:
        return

    if _look not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_look)


def _look(model: nn.Module, inputs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    parallel = DistributedDataParallel._get_active_ddp_module()
    if parallel is not None and parallel not in _looked_through:
        _ignore_indices(parallel)


def _ignore_indices(parallel: DistributedDataParallel) -> None:
    _looked_through.add(parallel)
    layers = {name: each for name, each in parallel.module.named_modules() if isinstance(each, SparseLayer)}
    parallel.parameters_to_ignore |= {f"{name}.{buffer}".lstrip(".") for name in layers for buffer in _INDICES}
    # It looks for what to send anew at each forward, but not where there was something and is nothing now.
    indices = {id(tensor) for layer in layers.values() for tensor in layer.pattern.tensors()}
    parallel.modules_buffers = [buffer for buffer in parallel.modules_buffers if id(buffer) not in indices]


def digest(*tensors: Tensor) -> int:
    """A 63-bit hash of the tensors' bytes."""
    whole = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        whole.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return int.from_bytes(whole.digest(), "little") >> 1


def spelt(ranks: Sequence[int]) -> str:
    """ "rank 1", "ranks 1, 3"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _own_group(group: Any) -> Any:
    if group not in _own_groups:
        _own_groups[group] = dist.new_group(
            dist.get_process_group_ranks(group),
            timeout=_timeout(group),
            backend="gloo",
            use_local_synchronization=True,
        )
    return _own_groups[group]


def _timeout(group: Any) -> timedelta | None:
    """How long the group waits for a rank; None where it does not say."""
    for device in ("cpu", "cuda"):
        try:
            return group._get_backend(torch.device(device)).options._timeout
        except (RuntimeError, AttributeError):
            continue
    return None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, next to each other as long as their dtype is the same and they are not too many."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(each.numel() for each in bucket) + tensor.numel()
        if bucket and (tensor.dtype != bucket[0].dtype or size > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
