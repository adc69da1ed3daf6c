"""The largest of a sum whose summands are on several ranks, found without adding up all of it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from sparsekern.backends.topology.numbers import Number
from sparsekern.growth.ranks import Ranks
from sparsekern.growth.select import select_by_magnitude

_SMALL = 4096  # places of a sum that is added up whole
_SHARE = 4  # as is one of which more than this part is asked for
_SAMPLED = 1 << 16  # places at most, of which the sum is known first
_SEEN = 0.75  # of the sum asked for, divided by the ranks: from there on a rank tells of its summand


def largest_of_sum(
    mine: Tensor, finite: Number, count: int, ranks: Ranks, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """The places of the ``count`` largest magnitudes of the ranks' sum, which :func:`select_by_magnitude` would choose.

    In three rounds, as Cao and Wang (2004, TPUT) find the largest of sums: a sum above t has a summand above t / ranks.
    So each rank tells of those, to the rank that has that part of the sum (each has one); that asks for what is missing
    of the sums that may be above t; and all are told of those that are. t comes from a sample of the sum, and is
    lowered where too few are above it. Exact whatever the summands: where so many are alike that this would not be
    less, and for small sums, all of the sum is added up.

    Memory is a few times that of the sum, most of it on the CPU.

    Args:
        mine: (size,) of float32 or float64, this rank's summand; NaN at places that are not to be taken, the same on
            all ranks and at least ``count`` fewer than all.
        finite: whether all else of it is.
        count: how many.
        ranks: that all call this.
        generator: of the sample, in the same state on all ranks.

    Returns:
        (count,) int64 on the summand's device, ascending; and whether the ranks' summands and those sums are finite.
        Where not, the places mean nothing. Both are the same on all ranks.
    """
    if not all(each for (each,) in ranks.gather([bool(finite)])):
        return torch.arange(count, device=mine.device), False
    size = mine.numel()
    if size < _SMALL or count * _SHARE > size:
        return _largest_of_all(mine, count, ranks)
    sample = torch.randint(size, (min(size // 64, _SAMPLED),), generator=generator, device="cpu")
    sums = ranks.add_up(mine[sample.to(mine.device)].cpu()).abs().nan_to_num_(0).sort(descending=True).values
    expected = count / size * len(sums)
    place = expected + 4 * math.sqrt(expected) + 4  # standard deviations, of how many of the sample are so large
    while True:
        least = sums[int(place)].item() if place < len(sums) else 0.0
        above = _above(mine, least, ranks)
        if above is None:
            return _largest_of_all(mine, count, ranks)
        places, values = above
        if not bool(values.isfinite().all()):
            return torch.arange(count, device=mine.device), False
        if len(places) >= count:
            return places[select_by_magnitude(values, count, largest=True)].to(mine.device), True
        if least == 0:  # all others are 0
            others = ~mine.isnan()
            others[places.to(mine.device)] = False
            first = others.nonzero().view(-1)[: count - len(places)]
            return torch.cat([places.to(mine.device), first]).sort().values, True
        place *= 4


def _largest_of_all(mine: Tensor, count: int, ranks: Ranks) -> tuple[Tensor, bool]:
    total = ranks.add_up(mine)
    return select_by_magnitude(total, count, largest=True), not bool(total.isinf().any())


def _above(mine: Tensor, least: float, ranks: Ranks) -> tuple[Tensor, Tensor] | None:
    """The places, ascending, and values of all sums whose magnitude is above ``least``; on the CPU, on all ranks.

    None where that would take about as much as to add up all.
    """
    size, world = mine.numel(), len(ranks)
    threshold = _SEEN * least / world
    held = (mine.abs() > threshold).nonzero().view(-1)
    if 2 * sum(each for (each,) in ranks.gather([len(held)])) > world * size:
        return None
    *starts, _ = ends = [size * rank // world for rank in range(world + 1)]
    lengths = [end - start for start, end in pairwise(ends)]
    values, held = mine[held].cpu(), held.cpu()
    cuts = torch.searchsorted(held, torch.tensor(ends, device="cpu")).diff().tolist()
    parts = [
        _packed(places - start, length, part)
        for places, part, start, length in zip(held.split(cuts), values.split(cuts), starts, lengths, strict=True)
    ]
    # A row a rank: its summands in this rank's part, NaN where it did not tell.
    told = torch.full((world, lengths[ranks.place]), torch.nan, dtype=mine.dtype, device="cpu")
    for row, content in zip(told, ranks.exchange(parts), strict=True):
        places, summands = _unpacked(content, len(row), mine.dtype)
        row[places] = summands
    missing = told.isnan()
    bound = told.nansum(0).abs_().add_(missing.sum(0), alpha=threshold)
    # Its rounding aside: what is asked for needlessly does no harm.
    maybe = ((bound >= 0.999 * least) & ~missing.all(0)).nonzero().view(-1)
    if threshold:
        asked = [maybe[each[maybe]] for each in missing]
        questions = ranks.exchange([_packed(places, len(row)) for row, places in zip(told, asked, strict=True)])
        answers = [
            mine[(_unpacked(content, length, mine.dtype)[0] + start).to(mine.device)].cpu()
            for content, start, length in zip(questions, starts, lengths, strict=True)
        ]
        for row, places, content in zip(told, asked, ranks.exchange(answers), strict=True):
            row[places] = content
    total, *rest = told[:, maybe].nan_to_num_(0)  # where the threshold is 0, so is what was not told
    for summands in rest:  # in one order
        total = total + summands
    good = total.abs() > least
    done = _packed(maybe[good], len(told[0]), total[good])
    found = [
        _unpacked(content, length, mine.dtype)
        for content, length in zip(ranks.exchange([done] * world), lengths, strict=True)
    ]
    places = torch.cat([places + start for (places, _), start in zip(found, starts, strict=True)])
    return places, torch.cat([values for _, values in found])


def _packed(places: Tensor, length: int, values: Tensor | None = None) -> Tensor:
    """Bytes of ascending places (n,) below ``length`` and of their values: how many each block has, two for each place
    in its block, and the values as they are."""
    counts = torch.bincount(places >> 16, minlength=_blocks(length)).to(torch.int32)
    parts = [counts, (places & 0xFFFF).to(torch.uint16), *([] if values is None else [values])]
    return torch.cat([part.view(torch.uint8) for part in parts])


def _unpacked(content: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The places and the values, of ``dtype``; no values where there were none."""
    head = 4 * _blocks(length)
    counts = content[:head].view(torch.int32).long()
    end = head + 2 * int(counts.sum())
    blocks = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
    # Copies: a view of another type has to begin where one of its numbers may.
    return (blocks << 16) + content[head:end].clone().view(torch.uint16).long(), content[end:].clone().view(dtype)


def _blocks(length: int) -> int:
    return -(-length // (1 << 16))
