"""Topologies by plain torch, as on a GPU, against the extension's: everything but random draws is the same."""

import itertools
import math

import numpy as np
import pytest
import test_candidates
import torch
from no_wait import NoWait
from test_candidates import chi_square, expected, first_draws, problem

import sparsekern
from sparsekern.backends.choice import topology_of
from sparsekern.backends.topology import _reference_draws, _reference_sums, cpu, reference
from sparsekern.backends.topology.numbers import read
from sparsekern.backends.topology.writes import Writes
from sparsekern.growth.samplers import SAMPLERS, inactive, sample_uniform, sample_weighted
from sparsekern.growth.select import mark_by_magnitude
from sparsekern.pattern import Pattern

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(1, 1), (7, 5), (300, 200), (5000, 3), (3, 9000), (1, 40), (40, 1)]
DENSITIES = [0, 0.05, 0.5, 1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_pattern(shape, density, seed=0):
    return Pattern.random(shape, round(density * shape[0] * shape[1]), generator(seed))


def bools(marks, size):
    """The extension's marks as the reference has them."""
    positions = torch.arange(size)
    return (marks[positions // 64] >> (positions % 64) & 1).bool()


@pytest.fixture(params=[torch.int32, torch.int64], ids=str)
def pointers(request, monkeypatch):
    if request.param == torch.int64:
        monkeypatch.setattr("sparsekern.pattern.INT32_EDGES", 0)
    return request.param


def test_which_is_chosen():
    device = torch.device("cpu")
    assert topology_of(device) is cpu
    assert topology_of(torch.device("cuda")) is reference
    with sparsekern.backend("reference"):
        assert topology_of(device) is reference
    public = {name for name, thing in vars(cpu).items() if callable(thing) and thing.__module__ == cpu.__name__}
    assert {name for name in public if not name.startswith("_")} == set(reference.__all__)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_are_the_same(shape, density, pointers):
    pattern = some_pattern(shape, density)
    stored = pattern.ccol_indices, pattern.row_indices
    for mine, theirs in zip(pattern.tensors()[2:], reference.transpose(*stored, shape[0]), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    rows, cols = pattern.edges()
    order = torch.randperm(pattern.nnz, generator=generator())
    keys, bad = reference.sorted_keys(rows[order], cols[order], shape)
    assert bad == -1
    assert torch.equal(keys, cpu.sorted_keys(rows[order], cols[order], shape)[0])
    for mine, theirs in zip(stored, reference.unpack_keys(keys, shape, pointers), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert bool(reference.same_edges(stored, stored))
    for place in {1, pattern.nnz // 2, pattern.nnz - 1} & {*range(1, pattern.nnz)}:
        twice = keys.clone()
        twice[place] = twice[place - 1]
        assert reference.unpack_checked(twice, shape, pointers)[2] == cpu.unpack_checked(twice, shape, pointers)[2] > 0
    with sparsekern.backend("reference"):
        twin = Pattern.from_csr(shape, pattern.crow_indices, pattern.col_indices)
        twin.validate()
        assert twin.equal(pattern)
        Pattern.from_buffers(shape, *(tensor.clone() for tensor in pattern.tensors())).validate()
        assert Pattern.from_mask(pattern.to_mask()).equal(pattern)


def complaint(make, backend):
    with sparsekern.backend(backend):
        try:
            make()
        except ValueError as error:
            return str(error)
    return ""


def test_what_is_wrong_is_told_in_the_same_words():
    """One entry of one array at a time, of every kind of wrong value."""
    pattern = some_pattern((6, 5), 0.4)
    told = set()
    for which, array in enumerate(pattern.tensors()):
        for place, wrong in itertools.product(range(array.numel()), (-5, -1, 0, 1, 3, 4, 6, 12, 13, 2**31 - 1)):
            tensors = [tensor.clone() for tensor in pattern.tensors()]
            tensors[which][place] = wrong
            made = {
                "five": lambda tensors=tensors: Pattern.from_buffers(
                    pattern.shape, *map(torch.clone, tensors)
                ).validate(),
                "csc": lambda tensors=tensors: Pattern.from_csc(pattern.shape, *tensors[:2]),
                "csr": lambda tensors=tensors: Pattern.from_csr(pattern.shape, *tensors[2:4]),
            }
            for make in made.values():
                mine = complaint(make, "reference")
                assert mine == complaint(make, "cpu")
                told.add(mine.split("[")[0] + mine.split(":")[-1][:20])
    assert len(told) == 12  # with the empty one
    edges = {"rows": [1, 2, 5], "cols": [0, 3, 4]}
    for name, place, wrong in itertools.product(edges, range(3), (-1, 4, 5, 6, 2**40)):
        changed = {**edges, name: [*edges[name]]}
        changed[name][place] = wrong
        rows, cols = (torch.tensor(side) for side in changed.values())
        make = lambda rows=rows, cols=cols: Pattern.from_coo(pattern.shape, rows, cols)  # noqa: E731
        assert complaint(make, "reference") == complaint(make, "cpu")
    twice = lambda: Pattern.from_coo((6, 5), torch.tensor([1, 2, 1]), torch.tensor([3, 3, 3]))  # noqa: E731
    assert complaint(twice, "reference") == complaint(twice, "cpu") != ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_selection_is_the_same_bit_for_bit(dtype):
    for size in (0, 1, 2, 63, 64, 65, 1000, 5000):
        values = torch.randint(-6, 7, (size,), generator=generator(size)).to(dtype) / 4
        for seed, few in enumerate((math.nan, math.inf, -math.inf, -0.0, 1e-7)):
            values[torch.randint(max(1, size), (size // 9,), generator=generator(seed))] = few
        for largest, count in itertools.product((True, False), {0, min(1, size), size // 3, size}):
            marks = bools(cpu.mark_by_magnitude(values, count, largest=largest), size)
            assert torch.equal(reference.mark_by_magnitude(values, count, largest=largest), marks)
            assert torch.equal(reference.mark_by_magnitude(values, torch.tensor(count), largest=largest), marks)
            positions = cpu.select_by_magnitude(values, count, largest=largest)
            assert torch.equal(reference.select_by_magnitude(values, count, largest=largest), positions)
        assert bool(reference.all_finite(values)) == cpu.all_finite(values)
        assert bool(reference.all_finite(values.nan_to_num(0, 0, 0)))
    valid = torch.tensor([True, False, True])
    assert bool(reference.all_finite(torch.tensor([1.0, math.nan, 2.0]), valid))
    assert not bool(reference.all_finite(torch.tensor([1.0, 2.0, math.inf]), valid))


def test_candidates_that_were_not_found_never_grow():
    scores = torch.tensor([1.0, math.inf, 3.0, 2.0, math.nan])
    valid = torch.tensor([True, False, True, True, False])
    rows = torch.zeros(5, dtype=torch.int32)
    assert bools(cpu.mark_candidates(rows, valid, scores, torch.tensor(2)), 5).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert bools(cpu.mark_candidates(rows, valid, None, 2), 5).tolist() == [True, False, True, False, False]
    assert cpu.all_finite(scores, valid)
    assert reference.mark_candidates(rows, valid, scores, 2).tolist() == [False, False, True, True, False]
    assert torch.equal(reference.mark_candidates(rows, valid, scores, 3), valid)
    assert reference.mark_candidates(rows, valid, None, torch.tensor(2)).tolist() == [True, False, True, False, False]
    assert reference.mark_candidates(rows, None, None, 2).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_exchanged_edges_and_their_values_are_the_same(shape, density, pointers):
    pattern = some_pattern(shape, density)
    candidates = sample_uniform(pattern, pattern.nnz + 3, generator())
    stored = candidates.ccol_indices, candidates.row_indices
    for count in {0, *(min(pattern.nnz, candidates.nnz) // part for part in (1, 3))}:
        positions = [
            torch.randperm(size, generator=generator())[:count].sort().values for size in (pattern.nnz, candidates.nnz)
        ]
        found = []
        for topology in (cpu, reference):
            arrays, writes = pattern.clone().tensors(), Writes()
            gone, chosen = (
                topology.mark_positions(places, size)
                for places, size in zip(positions, (pattern.nnz, candidates.nnz), strict=True)
            )
            grown = topology.exchange(arrays, gone, stored, chosen, count, writes)
            moved = [
                torch.arange(1, pattern.nnz + 1).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.uint8)
            ]
            for values in moved:
                topology.move_values(gone, grown, values, writes)
            source = topology.sources(gone, grown, pattern.nnz)
            if topology is reference:
                assert all(map(torch.equal, arrays, pattern.tensors()))  # as yet
            writes.write()
            found.append([*arrays, source, *moved])
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("wrong", ["present", "twice", "descending", "outside", "more"])
def test_replaced_edges_are_checked_as_ever(wrong):
    pattern = Pattern.from_coo((4, 3), torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2]))
    slots, rows, cols = torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([0, 2])
    source = pattern.clone().replace_edges(slots, rows, cols)
    changes = {
        "present": (slots, torch.tensor([1, 1]), torch.tensor([0, 1])),
        "twice": (slots, torch.tensor([2, 2]), torch.tensor([2, 2])),
        "descending": (slots.flip(0), rows, cols),
        "outside": (slots, torch.tensor([1, 4]), cols),
        "more": (slots[:1], rows, cols),
    }
    with sparsekern.backend("reference"):
        twin = pattern.clone()
        assert torch.equal(twin.replace_edges(slots, rows, cols), source)
        twin.validate()
    texts = [complaint(lambda: pattern.clone().replace_edges(*changes[wrong]), name) for name in ("cpu", "reference")]
    assert texts[0] == texts[1] != ""


def test_sums_of_a_batch_are_the_same():
    for name in test_candidates.LAYERS:
        layer, x, grad = problem(name)
        found = []
        for backend in ("cpu", "reference"):
            with sparsekern.backend(backend):
                sums = test_candidates.statistics.absolute_sums(layer, x, grad)
                sketch = test_candidates.statistics.sketched_sums(layer, x, grad, generator())
            found.append([*sums, *sketch])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_sums_over_unequal_sides_and_in_parts(monkeypatch):
    """Nothing of one axis is taken for the other's, and images that are summed apart are added up."""
    monkeypatch.setattr(_reference_sums, "_CHUNK", 1)
    geometry = (2, 3), (3, 1), (1, 2), (2, 3)
    out_size = (3, 6)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=generator())
    signs = reference.signs((3, 1, *out_size), x.device, generator())
    for name, arguments in {"window_sums": (x[0], *geometry, out_size), "signed_sums": (x, signs, *geometry)}.items():
        mine, theirs = (getattr(topology, name)(*arguments) for topology in (reference, cpu))
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_sums_unfold_nothing():
    layer = sparsekern.SparseConv2d(8, 8, 5, padding=2, density=0.1)
    x, grad = torch.randn(8, 8, 32, 32), torch.randn(8, 8, 32, 32)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.itemsize)
            return out

    with sparsekern.backend("reference"), Sizes():
        test_candidates.statistics.absolute_sums(layer, x, grad)
        test_candidates.statistics.sketched_sums(layer, x, grad, torch.Generator())
    assert largest <= x.numel()


# -- draws


@pytest.mark.parametrize(
    ("sampler", "layer_name"),
    [
        ("uniform", "linear"),
        ("grabo", "linear"),
        ("grabo", "groups"),
        ("graest", "strided, padded"),
        ("graest", "groups"),
    ],
)
def test_candidates_follow_their_distribution(sampler, layer_name):
    layer, x, grad = problem(layer_name)
    with sparsekern.backend("reference"):
        counts = first_draws(SAMPLERS[sampler], layer, x, grad, draws=300)
    assert chi_square(counts, expected(sampler, layer, x, grad)) < 4.5
    other = "grabo" if sampler == "uniform" else "uniform"
    assert chi_square(counts, expected(other, layer, x, grad)) > 5


def test_sets_are_drawn_without_replacement():
    """All candidates of a call, not only the first, against numpy's successive sampling; and sets alike likely."""
    pattern = Pattern.from_coo((2, 3), torch.tensor([1]), torch.tensor([2]))
    rows, cols = torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 2.0, 5.0]])
    weights = (rows[:, None] * cols).double()
    weights[1, 2] = 0
    probabilities = (weights / weights.sum()).flatten().numpy()
    draws = 400
    with sparsekern.backend("reference"):
        rng, mine = np.random.default_rng(0), generator()
        ours, theirs, sets = np.zeros(6), np.zeros(6), {}
        for _ in range(draws):
            row, col = sample_weighted(pattern, rows, cols, 3, mine).edges()
            ours[(row * 3 + col).numpy()] += 1
            theirs[rng.choice(6, 3, replace=False, p=probabilities)] += 1
            row, col = sample_uniform(pattern, 2, mine).edges()
            key = tuple((row * 3 + col).tolist())
            sets[key] = sets.get(key, 0) + 1
    assert (np.abs(ours - theirs) < 5 * np.sqrt(draws * 0.5)).all()
    assert len(sets) == math.comb(5, 2)
    assert chi_square(torch.tensor(list(sets.values())), torch.full((10,), 0.1)) < 4.5


def test_many_candidates_follow_their_weights():
    """The share of calls in which each place is drawn, against the extension's."""
    pattern = some_pattern((60, 50), 0.1)
    rows, cols = torch.rand(60, generator=generator(1)) + 0.2, torch.rand(2, 50, generator=generator(2)) + 0.2
    draws, counts = 150, {}
    for name, backend, weights in (
        ("mine", "reference", (rows, cols)),
        ("theirs", "cpu", (rows, cols)),
        ("even", "cpu", (torch.ones(60), torch.ones(2, 50))),
    ):
        counts[name] = torch.zeros(3000)
        with sparsekern.backend(backend):
            mine = generator()
            for _ in range(draws):
                row, col = sample_weighted(pattern, *weights, 1200, mine).edges()
                counts[name][row * 50 + col] += 1

    def deviation(one, other):
        """Mean square of the differences in standard deviations: 1 where both are draws of one distribution."""
        share = (one + other) / (2 * draws)
        drawn = (share > 0) & (share < 1)
        variance = 2 * draws * share * (1 - share)
        return float(((one - other).square()[drawn] / variance[drawn]).mean())

    assert 0.85 < deviation(counts["mine"], counts["theirs"]) < 1.15
    assert deviation(counts["even"], counts["theirs"]) > 1.5


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (40, 30), (300, 200), (2, 3000)])
@pytest.mark.parametrize("density", [0, 0.05, 0.4, 0.5, 0.9, 1])
def test_asked_for_is_found(shape, density, pointers):
    pattern = some_pattern(shape, density)
    mine, mask = generator(), pattern.to_mask()
    weights = torch.rand(shape[0], generator=mine) + 0.1, torch.rand(1, shape[1], generator=mine) + 0.1
    with sparsekern.backend("reference"):
        for count in {0, 1, pattern.nnz // 3, pattern.nnz, 2 * pattern.nnz}:
            wanted = min(count, inactive(pattern))
            drawn = [sample_uniform(pattern, count, mine)]
            if count <= 0.7 * inactive(pattern) or count >= inactive(pattern):
                drawn.append(sample_weighted(pattern, *weights, count, mine))
            for candidates in drawn:
                candidates.validate()
                assert read([candidates.found]) == [candidates.nnz] == [wanted]
                assert not (candidates.to_mask() & mask).any()


def test_draws_that_find_no_more_are_given_up():
    pattern = some_pattern((100, 100), 0.5)
    one_row, one_col = torch.eye(100)[3], torch.eye(100)[5:6]
    with sparsekern.backend("reference"):
        silent = sample_weighted(pattern, torch.zeros(100), torch.zeros(1, 100), 500, generator())
        assert bool(silent.valid.all())
        candidates = sample_weighted(pattern, one_row, one_col, 4000, generator())
        candidates.validate()  # also in the places that stand for nothing
        assert 0 < int(candidates.found) < 100
        rows, cols = (side[candidates.valid] for side in candidates.edges())
        assert not pattern.to_mask()[rows, cols].any()
        only = sample_weighted(pattern, one_row, torch.ones(1, 100), 20, generator())
        assert bool((only.row_indices[only.valid] == 3).all())


@pytest.mark.parametrize(("unit", "place"), [(0.0, 1), (0.5, 3), (1 - 2.0**-53, 3)])
def test_where_a_draw_falls(monkeypatch, unit, place):
    # Rows, and columns, of no share in 2**60, a half, none, another half and none.
    weights = torch.tensor([1e-30, 1.0, 1e-30, 1.0, 1e-30], dtype=torch.float64)
    edges = _reference_draws._EdgeWeights(weights, weights.view(1, -1))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, unit, dtype=torch.float64))
    assert edges.draw(2, generator()).tolist() == [place * 5 + place] * 2


def test_the_first_draws_are_kept():
    draws = torch.tensor([5, 3, 5, 9, 4])
    found, number = _reference_draws._added(*_reference_draws._nothing(2, draws.device), draws, draws[:0])
    assert (found.tolist(), number.item()) == ([3, 5], 4)
    found, number = _reference_draws._added(found, number, draws[-1:], draws[:0])
    assert (found.tolist(), number.item()) == ([3, 5], 5)
    keys, drawn = _reference_draws._filled(found, number)
    assert (keys.tolist(), drawn.tolist()) == ([3, 5], [True, True])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_all_alike(bad):
    """So that what is drawn, to be thrown away, lies inside of the matrix on any device."""
    weights, finite = _reference_draws._lifted(torch.tensor([1.0, bad, 0.0]), 1e-3)
    assert weights.tolist() == [1.0] * 3
    assert weights.dtype == torch.float64
    assert not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_device_tells_of_values_that_are_not_finite(bad):
    layer, x, grad = problem("conv")
    with sparsekern.backend("reference"):
        for sampler in ("grabo", "graest"):
            assert bool(SAMPLERS[sampler](layer, x, grad, 2, generator()).finite)
        x[0, 1, 1, 1] = bad
        for sampler in ("grabo", "graest"):
            candidates = SAMPLERS[sampler](layer, x, grad, 2, generator())
            candidates.validate()
            assert not bool(candidates.finite)


def test_same_seed_same_draw_and_others_else():
    pattern = some_pattern((50, 60), 0.07)
    rows, cols = torch.rand(50), torch.rand(1, 60)
    with sparsekern.backend("reference"):
        for sample in (
            lambda seed: sample_uniform(pattern, 100, generator(seed)),
            lambda seed: sample_weighted(pattern, rows, cols, 100, generator(seed)),
            lambda seed: Pattern.random((50, 60), 200, generator(seed)),
        ):
            assert sample(1).equal(sample(1))
            assert not sample(1).equal(sample(2))


def test_large_matrices():
    """Keys beyond 2**32, memory of the size of the edges: a bool for each place would be 64 GiB."""
    shape, nnz = (2**18, 2**18), 60_000
    largest = 0

    class Sizes(NoWait):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = super().__torch_dispatch__(func, types, args, kwargs)
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    weights = torch.rand(shape[0]), torch.rand(1, shape[1])
    with sparsekern.backend("reference"), Sizes():
        pattern = Pattern.random(shape, nnz, generator())
        candidates = sample_weighted(pattern, *weights, nnz, generator())
        kept = pattern.clone()
        pruned = mark_by_magnitude(torch.rand(nnz), nnz // 5, largest=False)
        chosen = mark_by_magnitude(torch.rand(nnz), nnz // 5, largest=True)
        grown = pattern.exchange(pruned, candidates, chosen, nnz // 5)
    assert largest <= 4 * (nnz + sum(shape))
    assert bool(candidates.valid.all())
    assert int(grown.sum()) == nnz // 5
    pattern.validate()
    candidates.validate()
    old, new, drawn = (
        set((cols * shape[0] + rows).tolist()) for rows, cols in (kept.edges(), pattern.edges(), candidates.edges())
    )
    assert not old & drawn
    assert len(new - old) == nnz // 5
    assert new - old <= drawn
