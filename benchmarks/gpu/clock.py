"""Times calls by a GPU's own events, with cold caches; on the CPU by the wall clock, which only rehearses."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from benchmarks.timing import Timing

LEAST_ROUNDS = 3  # of which a median is worth its name
_HERTZ = 2e9  # about a GPU's clock: `_sleep` counts cycles
_MOST_AHEAD = 0.02  # seconds; a call that takes the host longer waits for the host in its events as well
_FLUSHED = 4  # times the second-level cache is written over
_FAULTS = ("illegal memory access", "device-side assert", "launch failure", "misaligned address", "illegal instruction")


class OutOfTime(Exception):
    """The deadline came before there were rounds enough."""


@dataclass(frozen=True)
class Call:
    """What is timed: parts that run after one another, all within a context that is entered before."""

    parts: Sequence[Callable[[], object]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Measured:
    """Milliseconds of the whole, of each part, and of the host's launching of the whole."""

    total: Timing
    parts: tuple[Timing, ...]
    host: Timing


class Clock(Protocol):
    """`time` gives the seconds of each part, and those that the host took to launch them all.

    `peak` gives the bytes that a call had allocated at its most above what was held before; None where nobody counts.
    """

    def time(self, call: Call, ahead: float) -> tuple[list[float], float]: ...

    def peak(self, call: Call) -> int | None: ...


class CudaClock:
    """The GPU is kept busy for a while first, so that launches wait for it and not it for them."""

    def __init__(self, device: torch.device) -> None:
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
        self._flushed = torch.empty(_FLUSHED * cache, dtype=torch.uint8, device=device)

    def time(self, call: Call, ahead: float) -> tuple[list[float], float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(call.parts) + 1)]
        with call.context():
            torch.cuda.synchronize()
            self._flushed.zero_()
            torch.cuda._sleep(int(min(1.5 * ahead + 5e-5, _MOST_AHEAD) * _HERTZ))
            began = time.perf_counter()
            events[0].record()
            for event, part in zip(events[1:], call.parts, strict=True):
                part()
                event.record()
            host = time.perf_counter() - began
            torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)], host

    def peak(self, call: Call) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        with call.context():
            for part in call.parts:
                part()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held


class CpuClock:
    """The same by the wall clock: with no queue, the host's time is the whole."""

    def time(self, call: Call, ahead: float) -> tuple[list[float], float]:
        times = []
        with call.context():
            for part in call.parts:
                began = time.perf_counter()
                part()
                times.append(time.perf_counter() - began)
        return times, sum(times)

    def peak(self, call: Call) -> int | None:
        with call.context():
            for part in call.parts:
                part()
        return None


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


class Fault(Exception):
    """The GPU's context is lost; `backend` is sparsekern's whose kernels ran, or None."""

    def __init__(self, error: BaseException, backend: str | None, what: str) -> None:
        super().__init__(f"{what}: {first_line(error)}")
        self.backend = backend


def is_fatal(error: BaseException) -> bool:
    """Whether no call after this one can work: a GPU's context does not outlive a fault."""
    if any(word in str(error).lower() for word in _FAULTS):
        return True
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()  # a fault is reported again and again
    except RuntimeError:
        return True
    return False


def interleaved(
    clock: Clock,
    make_inputs: Callable[[int], Any],
    candidates: Mapping[str, Callable[[Any], Call]],
    rounds: int,
    deadline: float,
    warm_up: int = 2,
    backends: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, Measured], list[str]]:
    """Times each candidate once a round, as `benchmarks.timing.interleaved` does, until rounds or time are over.

    Args:
        make_inputs: the round's number to its inputs.
        candidates: by name; each prepares, untimed, from the inputs.
        rounds: rounds that count; `warm_up` more come first and do not.
        deadline: of time.monotonic(); no round begins after it, nor, from LEAST_ROUNDS on, one that would end after it.
        backends: sparsekern's, by the candidate's name: what a fault is put down to.

    Returns:
        The times, and a note for each candidate that failed on the way.

    Raises:
        OutOfTime: fewer rounds than LEAST_ROUNDS were possible.
        Fault: a candidate lost the GPU's context.
    """
    names = list(candidates)
    taken: dict[str, list[list[float]]] = {name: [] for name in names}
    hosts: dict[str, list[float]] = {name: [] for name in names}
    ahead = dict.fromkeys(names, 1e-3)
    notes: list[str] = []
    done, took = 0, 0.0
    for index in range(warm_up + rounds):
        began = time.monotonic()
        if began + (took if done >= LEAST_ROUNDS else 0.0) > deadline:
            break
        inputs = make_inputs(index)
        start = index % max(1, len(names))
        for name in names[start:] + names[:start]:
            try:
                call = candidates[name](inputs)
                gc.disable()
                times, host = clock.time(call, ahead[name])
            except Exception as error:
                if is_fatal(error):
                    raise Fault(error, (backends or {}).get(name), f"{name}, while it was timed") from error
                notes.append(f"{name}: failed while it was timed ({first_line(error)})")
                names.remove(name)
                continue
            finally:
                gc.enable()
            ahead[name] = host
            if index >= warm_up:
                taken[name].append(times)
                hosts[name].append(host)
        done, took = max(0, index + 1 - warm_up), time.monotonic() - began
    if done < LEAST_ROUNDS:
        raise OutOfTime(f"{done} of at least {LEAST_ROUNDS} rounds when the time was over")
    return {name: _measured(taken[name], hosts[name]) for name in names}, notes


def _measured(taken: list[list[float]], hosts: list[float]) -> Measured:
    parts = tuple(Timing.of(list(times)) for times in zip(*taken, strict=True))
    return Measured(Timing.of([sum(times) for times in taken]), parts, Timing.of(hosts))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
