"""How many nonzeros each layer gets: Erdos-Renyi (er), its kernel form (erk), uniform; exact in total."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

Shape = Sequence[int]


def _er(shape: Shape) -> int:
    """n_in + n_out, n_in = C_in / groups * kh * kw (SET, arXiv 1707.04780, eq. 3; GSE, arXiv 2401.06898)."""
    return shape[0] + math.prod(shape[1:])


def _erk(shape: Shape) -> int:
    """C_out + C_in / groups + kh + kw (RigL, arXiv 1911.11134, section 3); ER for a linear layer."""
    return sum(shape)


def _uniform(shape: Shape) -> int:
    return math.prod(shape)


# A layer's share of the nonzeros before clipping: its density times its size, up to a factor common to all.
# All three are whole numbers, so the division below is exact.
DISTRIBUTIONS: dict[str, Callable[[Shape], int]] = {"er": _er, "erk": _erk, "uniform": _uniform}


def check_density(density: float) -> float:
    """Returns `density` as a float. Raises TypeError for what is no number, ValueError outside (0, 1]."""
    if isinstance(density, bool) or not hasattr(density, "__float__"):
        raise TypeError(f"density must be a number in (0, 1], got {density!r}")
    value = float(density)
    if not 0.0 < value <= 1.0:  # also refuses NaN
        raise ValueError(f"density must be in (0, 1], got {density!r}")
    return value


def layer_nnz(shapes: Sequence[Shape], density: float, distribution: str = "erk") -> list[int]:
    """Number of nonzeros of each layer.

    The sum is exactly `round(density * total size)` and every layer has between 1 and its size. With `w` the
    layer's share under the distribution, its nonzeros are `s * w` clipped to [1, size], where the one factor
    `s` is chosen so that the sum comes out: what a layer at density 1 cannot take goes to the others in
    proportion (RigL fixes such layers at 1 and rescales the rest until none passes 1). Fractions are rounded
    by largest remainder.

    Args:
        shapes: each layer's weight shape as torch has it: (out, in) or (C_out, C_in / groups, kh, kw).
        density: share of all the layers' weights that are nonzero, in (0, 1].
        distribution: "er" (a layer's density goes as (n_in + n_out) / (n_in n_out)), "erk" (it goes as
            (C_in + C_out + kh + kw) / (C_in C_out kh kw)) or "uniform".

    Raises:
        TypeError: a density that is no number.
        ValueError: a density outside (0, 1], an unknown distribution, a layer without weights, or a density
            so low that there is not one nonzero for each layer.
    """
    density = check_density(density)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    sizes = [math.prod(shape) for shape in shapes]
    for shape, size in zip(shapes, sizes, strict=True):
        if size < 1 or len(shape) < 2:
            raise ValueError(f"shapes must be (out, in, ...) with every size at least 1, got {tuple(shape)}")
    total = round(density * sum(sizes))
    if total < len(sizes):
        raise ValueError(
            f"density {density} gives {total} nonzeros for {len(sizes)} layers, which need one each: "
            f"use at least {len(sizes) / sum(sizes):.3g}"
        )
    shares = [DISTRIBUTIONS[distribution](shape) for shape in shapes]
    factor = _scale(shares, sizes, total)
    exact = [min(max(factor * share, Fraction(1)), Fraction(size)) for share, size in zip(shares, sizes, strict=True)]
    return _round_to(exact, total)


def layer_densities(shapes: Sequence[Shape], density: float, distribution: str = "erk") -> list[float]:
    """`layer_nnz` divided by each layer's size."""
    counts = layer_nnz(shapes, density, distribution)
    return [nnz / math.prod(shape) for nnz, shape in zip(counts, shapes, strict=True)]


def _scale(shares: Sequence[int], sizes: Sequence[int], total: int) -> Fraction:
    """The factor s with sum(clip(s * share, 1, size)) == total, from the breakpoints of this rising sum."""
    breakpoints = []
    for share, size in zip(shares, sizes, strict=True):
        breakpoints.append((Fraction(1, share), -1, share))  # from here the layer's nonzeros grow with s ...
        breakpoints.append((Fraction(size, share), size, -share))  # ... and from here it is full
    constant, slope = len(sizes), 0
    at = Fraction(0)
    for at, fixed, change in sorted(breakpoints):
        if constant + slope * at >= total:
            return Fraction(total - constant, slope) if slope else at
        constant += fixed
        slope += change
    return at


def _round_to(exact: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to `total` = sum(exact): floors, and one more where the remainder is largest."""
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
