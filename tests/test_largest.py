"""The largest of a sum over ranks, against those of the sum itself: ranks in threads, and some in processes."""

import itertools
import threading

import pytest
import torch
from rank_pool import RankPool

from sparsekern.growth import largest
from sparsekern.growth.largest import largest_of_sum
from sparsekern.growth.ranks import find_ranks
from sparsekern.growth.select import select_by_magnitude

# (size, count)
SIZES = (70_001, 1), (70_001, 900), (9_000, 2_000), (140_007, 3_000), (60, 10), (9_000, 0)


class Threads:
    """As Ranks, of threads; `sent` are the bytes that all of them would send on a ring."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=60)
        self.slots = [None] * count
        self.sent = 0

    def __call__(self, function):
        found = [None] * len(self.slots)

        def work(place):
            try:
                found[place] = function(place, Thread(self, place))
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=work, args=(place,)) for place in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Thread:
    def __init__(self, threads, place):
        self.threads, self.place = threads, place

    def __len__(self):
        return len(self.threads.slots)

    def _all(self, mine):
        self.threads.slots[self.place] = mine
        self.threads.barrier.wait()
        told = list(self.threads.slots)
        self.threads.barrier.wait()
        return told

    def gather(self, numbers):
        return self._all(list(map(int, numbers)))

    def add_up(self, tensor):
        self.threads.sent += 2 * tensor.nbytes * (len(self) - 1) / len(self)
        return sum_of(self._all(tensor.clone()))

    def exchange(self, parts):
        self.threads.sent += sum(part.nbytes for place, part in enumerate(parts) if place != self.place)
        return [told[self.place].clone() for told in self._all(list(parts))]


def sum_of(parts):
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def summands(kind, size, world, seed, dtype=torch.float32):
    """(world, size), NaN in a tenth of the places. The sums of all but "apart" and "heavy" have ties."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(world, size, generator=generator)
    some = torch.rand(size, generator=generator)
    parts = {
        "apart": normal,
        "heavy": normal * torch.randn(size, generator=generator).mul(3).exp(),
        "rounded": normal.mul(3).round(),
        "nearly all 0": normal.round() * (some < 0.02),
        "all 0": torch.zeros(world, size),
        "signs": normal[0].sign() * (some < 0.3) * (torch.arange(world) == 0)[:, None],
        "cancelling": normal[0].mul(8).round() * torch.tensor([1.0, -1.0] + [0.0] * (world - 2))[:, None],
        "one rank's": normal * (torch.arange(world) == world - 1)[:, None],
    }[kind].to(dtype)
    parts[:, torch.randperm(size, generator=generator)[: size // 10]] = torch.nan
    return parts


KINDS = ("apart", "heavy", "rounded", "nearly all 0", "all 0", "signs", "cancelling", "one rank's")


def find(parts, count, finite=(True, True, True, True, True), seed=0):
    """What each rank finds, and the bytes that all send."""
    threads = Threads(len(parts))

    def work(place, rank):
        generator = torch.Generator().manual_seed(seed)
        return largest_of_sum(parts[place].clone(), finite[place], count, rank, generator)

    return threads(work), threads.sent


def check(found, parts, count):
    wanted = select_by_magnitude(sum_of(parts), count, largest=True)
    for places, finite in found:
        assert finite
        assert torch.equal(places, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("world", "dtype"), [(2, torch.float32), (3, torch.float64), (5, torch.float32)])
def test_the_largest_of_a_sum_are_found(kind, world, dtype):
    for seed, (size, count) in enumerate(SIZES):
        parts = summands(kind, size, world, seed, dtype)
        found, sent = find(parts, count, seed=seed)
        check(found, parts, count)
        dense = 2 * (world - 1) * parts[0].nbytes
        assert sent < (0.25 if kind in ("heavy", "all 0") and count * 10 < size > 60 else 1.25) * dense


def test_too_high_a_guess_is_lowered(monkeypatch):
    """The sample has none of the small ones."""
    tried = []
    above = largest._above
    monkeypatch.setattr(largest, "_above", lambda mine, least, ranks: tried.append(least) or above(mine, least, ranks))
    size = 20_000
    sample = torch.randint(size, (size // 64,), generator=torch.Generator().manual_seed(0))
    whole = torch.arange(size) % 97 + 1.0
    whole[sample] += 1000
    parts = torch.stack([whole, torch.zeros(size)])
    check(find(parts, 400)[0], parts, 400)
    assert len(set(tried)) > 1


@pytest.mark.parametrize("size", [60, 70_000])
def test_what_is_not_finite_is_said_on_all_ranks(size):
    for at, value in itertools.product((0, 1), (torch.finfo(torch.float32).max, None)):
        parts = torch.randn(2, size, generator=torch.Generator().manual_seed(at))
        if value is not None:  # in their sum alone
            parts[:, 7] = value
        own = (True, True) if value is not None else (at != 0, at != 1)
        for places, finite in find(parts, 5, own)[0]:
            assert not finite
            assert places.shape == (5,)


def on_ranks(rank, world):
    found = []
    for kind, (size, count) in itertools.product(("apart", "heavy", "rounded"), SIZES):
        parts = summands(kind, size, world, 0)
        group = find_ranks(torch.nn.Module(), None)
        generator = torch.Generator().manual_seed(0)
        found.append(largest_of_sum(parts[rank].clone(), True, count, group, generator)[0].tolist())
    return found


def test_ranks_find_them_as_threads_do():
    pool = RankPool()
    try:
        found = pool(3, on_ranks, 3)
    finally:
        pool.stop()
    wanted = [
        select_by_magnitude(sum_of(summands(kind, size, 3, 0)), count, largest=True).tolist()
        for kind, (size, count) in itertools.product(("apart", "heavy", "rounded"), SIZES)
    ]
    assert found == [wanted] * 3
