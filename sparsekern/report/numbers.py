"""Numbers as text, and where an axis has its ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

Format = Callable[["float | None"], str]
ABSENT = "n/a"


def plain(value: float | None) -> str:
    """Five significant digits; whole numbers whole."""
    if value is None:
        return ABSENT
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.5g}"


def percent(value: float | None) -> str:
    """Of a share."""
    return ABSENT if value is None else f"{100 * value:.2f}%"


def milliseconds(value: float | None) -> str:
    """Of seconds."""
    return ABSENT if value is None else f"{1000 * value:.5g} ms"


def ratio(value: float, other: float) -> str:
    return f"{value / other:.3f}" if other else ABSENT


def short(value: float) -> str:
    """For an axis, whose ticks are round numbers but may lie close together: none of their digits is left out."""
    plain = f"{value:.12g}"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return plain
    exponent = math.floor(math.log10(abs(value)))
    return min(f"{value / 10.0**exponent:.12g}e{exponent}", plain, key=len)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; where there are fewer than three, 2 and 5 times those too, or else any others."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    if len(within) < 3:
        every = (factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5))
        within = [tick for tick in every if low <= tick <= high]
    return within if len(within) >= 3 else ticks(low, high, 3)


def is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def thinned(points: Sequence[tuple[float, float]], most: int = 800) -> list[tuple[float, float]]:
    """Every n-th point and the last, so that there are about as many as `most`."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
