"""The largest of all layers' scores, found by counting: no two layers' scores are ever put together or sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

# Scores that are counted at once; each takes some 30 bytes of scratch.
_CHUNK = 1 << 19
_DIGIT = 16
_DIGITS = 1 << _DIGIT


def best_masks(scores: Mapping[str, Callable[[], Tensor]], total: int) -> Iterator[tuple[str, Tensor]]:
    """Marks the `total` largest scores of all layers together, layer by layer, in order.

    Each layer keeps its own largest score whatever the others have, so that none is left without an edge; the other
    `total - layers` are the largest of the rest. Of equal scores the one in the earlier layer goes first, then the
    one that is earlier in memory. Exact, in time O(scores).

    The threshold is found digit by digit, from counts of the scores' leading bits (radix selection): two passes over
    float32 scores and four over float64, and two more. At any time one layer's scores are asked for.

    Args:
        scores: by layer, a function that returns its scores, of any shape and floating dtype, the same every time.
        total: from the number of layers to the number of scores.

    Yields:
        (name, mask), bool and flat, made when it is asked for: 1 byte a score.

    Raises:
        ValueError: naming the layer, for a score that is NaN or infinite.
    """
    best: dict[str, int] = {}
    wide = False
    for name, score in scores.items():
        values = score().detach().reshape(-1)
        # A NaN is in both ends; a test of each value would take several times their memory.
        if not all(bool(end.isfinite()) for end in values.aminmax()):
            raise ValueError(f"scores of layer {name!r} are not finite: the model's loss or output overflows")
        best[name] = int(values.argmax())
        wide = wide or values.dtype == torch.float64
        del values
    rest = total - len(best)
    cut, tied = _threshold(scores, best, rest, wide) if rest else (0, 0)
    for name, score in scores.items():
        values = score().detach().reshape(-1)
        mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        for start, keys in _ordered(values, wide) if rest else ():
            part = mask[start : start + keys.numel()]
            torch.gt(keys, cut, out=part)
            if tied:
                equal = (keys == cut).nonzero().view(-1)
                equal = equal[equal != best[name] - start][:tied]
                part[equal] = True
                tied -= equal.numel()
        mask[best[name]] = True
        del values
        yield name, mask


def _threshold(
    scores: Mapping[str, Callable[[], Tensor]], best: Mapping[str, int], rest: int, wide: bool
) -> tuple[int, int]:
    """The key of the `rest`-th largest score apart from the layers' best ones, and how many of that key belong."""
    shift = (64 if wide else 32) - _DIGIT
    prefix: int | None = None  # of the threshold's key, its bits above those that are counted
    while shift >= 0:
        counts = torch.zeros(_DIGITS, dtype=torch.int64)
        for name, score in scores.items():
            for start, keys in _ordered(score().detach().reshape(-1), wide):
                leading = keys.long() >> shift
                at = best[name] - start
                if 0 <= at < keys.numel():
                    leading = torch.cat((leading[:at], leading[at + 1 :]))
                if prefix is not None:
                    leading = leading[leading >> _DIGIT == prefix]
                digits = leading & (_DIGITS - 1) if prefix is not None else leading + _DIGITS // 2
                counts += torch.bincount(digits, minlength=_DIGITS).cpu()
        from_above = counts.flip(0).cumsum(0)
        passed = int(torch.searchsorted(from_above, rest))  # digits that are wholly above the threshold
        rest -= int(from_above[passed - 1]) if passed else 0
        digit = _DIGITS - 1 - passed
        prefix = digit - _DIGITS // 2 if prefix is None else (prefix << _DIGIT) + digit
        shift -= _DIGIT
    assert prefix is not None
    return prefix, rest


def _ordered(values: Tensor, wide: bool) -> Iterator[tuple[int, Tensor]]:
    """(start, keys): of each chunk of flat values integers that are ordered as they are, equal for both zeros."""
    integer = torch.int64 if wide else torch.int32
    for start in range(0, values.numel(), _CHUNK):
        # Adding 0 makes the negative zero a positive one.
        part = values[start : start + _CHUNK].to(torch.float64 if wide else torch.float32) + 0.0
        bits = part.view(integer)
        # Below zero a larger magnitude is a smaller number.
        yield start, torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits)
