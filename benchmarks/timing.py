"""Times several ways of doing one thing, interleaved in one process, on fresh inputs each round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        lower, middle, upper = (
            round(1e3 * value, 4) for value in statistics.quantiles(seconds, n=4, method="inclusive")
        )
        return cls(middle, lower, upper, len(seconds))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def interleaved(
    make_inputs: Callable[[int], Inputs],
    candidates: Mapping[str, Callable[[Inputs], Callable[[], object]]],
    rounds: int,
    warm_up: int = 2,
) -> dict[str, Timing]:
    """Times each candidate once a round.

    Every round makes its inputs anew and each candidate gets the same ones: `candidates[name](inputs)`
    prepares, untimed, and returns the call to time. The order rotates from round to round, so that nobody always runs
    after the same neighbour; garbage collection waits.

    Args:
        make_inputs: the round's number to its inputs.
        candidates: by name.
        rounds: rounds that count, at least 2; `warm_up` more come first and do not.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warm_up + rounds):
        inputs = make_inputs(index)
        start = index % len(names)
        for name in names[start:] + names[:start]:
            call = candidates[name](inputs)
            gc.disable()
            began = time.perf_counter()
            call()
            took = time.perf_counter() - began
            gc.enable()
            if index >= warm_up:
                seconds[name].append(took)
    return {name: Timing.of(values) for name, values in seconds.items()}
