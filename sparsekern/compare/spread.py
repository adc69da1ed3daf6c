"""Means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation, of n - 1), the latter None for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def show_mean(values: Sequence[float]) -> str:
    """ "97.77 ± 0.44", or "97.77" for a single value."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
