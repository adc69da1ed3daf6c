"""Where the processes of one start under torchrun find each other, and not those of the start before."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL = 0.01  # seconds


def find_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A store for the processes that torchrun started now, this one's number among them, and their count.

    Raises RuntimeError where they have not all come within `timeout`.
    """
    store, number, count = next(dist.rendezvous("env://", timeout=timeout))
    return part_of_this_start(store, number, count, timeout), number, count


def part_of_this_start(store: dist.Store, number: int, count: int, timeout: timedelta) -> dist.Store:
    """A part of `store` that has nothing in it from before.

    torchrun's agent keeps one store through all its restarts, in which torch looks for other processes' addresses
    under the same names each time. Who looks before the other has written finds the address of a dead process.
    TORCHELASTIC_RESTART_COUNT cannot tell the starts apart: each node has its own. So every process leaves a token
    made just now, and the first one answers it with a name that it made for this start. The answer to an old token
    is read by nobody, and the first process waits until all have said that they read theirs.
    """
    store.set_timeout(timeout)
    if number == 0:
        return dist.PrefixStore(give_name(store, count, timeout), store)
    token = uuid.uuid4().hex
    store.set(f"sparsekern/token/{number}", token)
    name = store.get(f"sparsekern/name/{token}").decode()  # waits for it
    store.set(f"{name}/has/{number}", "")
    return dist.PrefixStore(name, store)


def give_name(store: dist.Store, count: int, timeout: timedelta) -> str:
    name, deadline = f"sparsekern/{uuid.uuid4().hex}", time.monotonic() + timeout.total_seconds()
    waiting = set(range(1, count))
    while waiting:
        for number in sorted(waiting):
            if store.check([f"sparsekern/token/{number}"]):
                store.set(f"sparsekern/name/{store.get(f'sparsekern/token/{number}').decode()}", name)
            if store.check([f"{name}/has/{number}"]):
                waiting.discard(number)
        if waiting and time.monotonic() > deadline:
            raise RuntimeError(f"after {timeout.total_seconds():g} s, process(es) {sorted(waiting)} had not come")
        time.sleep(POLL)
    return name
