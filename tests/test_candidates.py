import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekern import _C
from sparsekern.backends.topology import cpu, reference
from sparsekern.growth import statistics
from sparsekern.growth.ranks import WHOLE_BATCH
from sparsekern.growth.samplers import EPSILON, SAMPLERS, inactive, sample_uniform, sample_weighted
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.pattern import Pattern

LAYERS = {
    "linear": (lambda: SparseLinear(5, 4, density=0.3), (3, 5), (3, 4)),
    "linear of 3 dimensions": (lambda: SparseLinear(4, 3, density=0.3), (2, 2, 4), (2, 2, 3)),
    "conv": (lambda: SparseConv2d(2, 3, (2, 1), density=0.3), (1, 2, 3, 2), (1, 3, 2, 2)),
    "strided, padded": (
        lambda: SparseConv2d(1, 3, 3, stride=2, padding=1, density=0.3),
        (1, 1, 4, 3),
        (1, 3, 2, 2),
    ),
    "dilated": (lambda: SparseConv2d(1, 4, 2, dilation=2, density=0.3), (2, 1, 4, 3), (2, 4, 2, 1)),
    "groups": (
        lambda: SparseConv2d(4, 4, (1, 2), stride=(1, 2), padding=(0, 1), groups=2, density=0.3),
        (2, 4, 1, 2),
        (2, 4, 1, 2),
    ),
    "stride above kernel, unbatched": (
        lambda: SparseConv2d(6, 4, (1, 2), stride=3, groups=2, padding=(0, 1), density=0.3),
        (6, 4, 5),
        (4, 2, 2),
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def problem(name, dtype=torch.float64):
    """(layer, x, grad), with values of very different size."""
    torch.manual_seed(0)
    make, x_shape, grad_shape = LAYERS[name]
    layer = make().to(dtype)
    assert layer(torch.zeros(x_shape, dtype=dtype)).shape == grad_shape
    x = torch.randn(x_shape, dtype=dtype) * torch.rand(x_shape, dtype=dtype)
    return layer, x, torch.randn(grad_shape, dtype=dtype).pow(3)


def batch_rows(layer, x, grad):
    """(h (rows, groups, columns), delta (rows, outputs)): the dense product's operands, unfolded."""
    if isinstance(layer, SparseLinear):
        return x.reshape(-1, 1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    x, grad = (x, grad) if x.dim() == 4 else (x[None], grad[None])
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.product_padding, layer.stride)
    h = unfolded.transpose(1, 2).reshape(-1, layer.groups, unfolded.shape[1] // layer.groups)
    return h, grad.flatten(2).transpose(1, 2).reshape(-1, grad.shape[1])


def distribution(layer, f, g):
    """Probability of each inactive place (rows, columns), from (groups, columns) and (rows,), densely."""
    f, g = (side + EPSILON * side.mean() for side in (f, g))
    weights = g[:, None] * f.repeat_interleave(len(g) // len(f), dim=0)
    weights[layer.pattern.to_mask()] = 0
    return weights / weights.sum()


def expected(name, layer, x, grad):
    h, delta = batch_rows(layer, x, grad)
    if name == "uniform":
        return distribution(layer, torch.ones_like(h[0]), torch.ones_like(delta[0]))
    if name == "grabo":
        return distribution(layer, h.abs().sum(0), delta.abs().sum(0))
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(h))), dtype=h.dtype)
    mean = 0
    for s in signs:
        mean = mean + distribution(layer, torch.einsum("b,bgc->gc", s, h).abs(), (s @ delta).abs())
    return mean / len(signs)


def chi_square(counts, probabilities):
    """(statistic - degrees of freedom) in standard deviations of the chi-square distribution."""
    counts, probabilities = counts.numpy(), probabilities.numpy()
    assert (counts[probabilities == 0] == 0).all()
    mean = counts.sum() * probabilities
    common = mean >= 5
    cells = [*zip(counts[common], mean[common], strict=True), (counts[~common].sum(), mean[~common].sum())]
    cells = [(count, mean) for count, mean in cells if mean > 0]
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    freedom = len(cells) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def first_draws(sampler, layer, x, grad, draws=1500):
    counts = torch.zeros(layer.matrix_shape)
    generator = torch.Generator().manual_seed(2)
    for _ in range(draws):
        candidates = sampler(layer, x, grad, 1, generator)
        assert candidates.nnz == 1
        row, col = candidates.edges()
        counts[row, col] += 1
    return counts


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_candidates_follow_their_distribution(sampler, layer_name):
    layer, x, grad = problem(layer_name)
    counts = first_draws(SAMPLERS[sampler], layer, x, grad)
    assert chi_square(counts, expected(sampler, layer, x, grad)) < 4.5
    # The test would notice another distribution.
    other = "grabo" if sampler == "uniform" else "uniform"
    assert chi_square(counts, expected(other, layer, x, grad)) > 10


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_statistics_match_the_unfolded_input(layer_name, dtype):
    layer, x, grad = problem(layer_name, dtype)
    h, delta = (side.double() for side in batch_rows(layer, x, grad))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]

    def close(found, wanted):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)

    f, g = statistics.absolute_sums(layer, x, grad)
    assert f.dtype == g.dtype == torch.promote_types(dtype, torch.float32)
    close(f, h.abs().sum(0))
    close(g, delta.abs().sum(0))

    f, g = statistics.sketched_sums(layer, x, grad, torch.Generator().manual_seed(4))
    # All sign vectors, to find the one that was drawn; both sides must have seen the same.
    matches = [
        s
        for signs in itertools.product([-1.0, 1.0], repeat=len(h))
        for s in [torch.tensor(signs, dtype=torch.float64)]
        if torch.allclose(torch.einsum("b,bgc->gc", s, h).abs(), f.double(), rtol=tolerance, atol=tolerance)
        and torch.allclose((s @ delta).abs(), g.double(), rtol=tolerance, atol=tolerance)
    ]
    assert matches


def test_statistics_of_large_batches_are_summed_in_parts(monkeypatch):
    layer = SparseConv2d(3, 4, 3, padding=1, density=0.3)
    x, grad = torch.randn(7, 3, 6, 5).bfloat16(), torch.randn(7, 4, 6, 5).bfloat16()
    whole = statistics.absolute_sums(layer, x, grad)
    monkeypatch.setattr(cpu, "_CHUNK", 100)
    for found, wanted in zip(statistics.absolute_sums(layer, x, grad), whole, strict=True):
        torch.testing.assert_close(found, wanted)


def test_an_empty_batch_gives_uniform_candidates():
    layer = SparseLinear(6, 5, density=0.5)
    for sampler in SAMPLERS.values():
        candidates = sampler(layer, torch.zeros(0, 6), torch.zeros(0, 5), 3, torch.Generator())
        assert candidates.nnz == 3


def assert_candidates(candidates, pattern, count):
    candidates.validate()
    assert candidates.nnz == count
    assert not (candidates.to_mask() & pattern.to_mask()).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (40, 30), (300, 200), (2, 3000)])
@pytest.mark.parametrize("density", [0, 0.05, 0.4, 0.5, 0.9, 1])
def test_asked_for_is_found(shape, density):
    """Exactly as many distinct inactive edges as asked for, or all there are."""
    pattern = Pattern.random(shape, round(density * shape[0] * shape[1]), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(shape[0]) + 0.1, torch.rand(1, shape[1]) + 0.1
    for count in {0, 1, pattern.nnz // 3, pattern.nnz, 2 * pattern.nnz}:
        found = min(count, inactive(pattern))
        assert_candidates(sample_uniform(pattern, count, generator), pattern, found)
        if count <= 0.7 * inactive(pattern) or count >= inactive(pattern):
            assert_candidates(sample_weighted(pattern, *weights, count, generator), pattern, found)


def test_uniform_sets_are_all_alike_likely():
    pattern = Pattern.from_coo((3, 2), torch.tensor([0, 2]), torch.tensor([0, 1]))
    generator = torch.Generator().manual_seed(0)
    sets = {}
    for _ in range(3000):
        rows, cols = sample_uniform(pattern, 2, generator).edges()
        key = tuple(zip(rows.tolist(), cols.tolist(), strict=True))
        sets[key] = sets.get(key, 0) + 1
    counts = torch.tensor(list(sets.values()))
    assert len(sets) == math.comb(4, 2)
    assert chi_square(counts, torch.full((6,), 1 / 6)) < 4.5


def test_same_generator_same_candidates_and_others_else():
    pattern = Pattern.random((50, 60), 200)
    rows, cols = torch.rand(50), torch.rand(1, 60)
    for sample in (
        lambda seed: sample_uniform(pattern, 100, torch.Generator().manual_seed(seed)),
        lambda seed: sample_weighted(pattern, rows, cols, 100, torch.Generator().manual_seed(seed)),
    ):
        assert sample(1).equal(sample(1))
        assert not sample(1).equal(sample(2))


def test_silent_rows_and_columns_never_stall():
    pattern = Pattern.random((100, 100), 5000, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    assert_candidates(sample_weighted(pattern, torch.zeros(100), torch.zeros(1, 100), 500, generator), pattern, 500)
    one_row, one_col = torch.eye(100)[3], torch.eye(100)[5:6]
    candidates = sample_weighted(pattern, one_row, one_col, 4000, generator)
    candidates.validate()
    assert candidates.nnz < 100  # the rest is as good as impossible: the draws are given up, not the run
    only = sample_weighted(pattern, one_row, torch.ones(1, 100), 20, generator)
    assert (only.row_indices == 3).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_raise(bad):
    layer, x, grad = problem("conv")
    x[0, 1, 1, 1] = bad
    for sampler in ("grabo", "graest"):
        with pytest.raises(FloatingPointError, match="not finite"):
            SAMPLERS[sampler](layer, x, grad, 2, torch.Generator())


def test_wide_pointers(monkeypatch):
    monkeypatch.setattr("sparsekern.pattern.INT32_EDGES", 0)
    pattern = Pattern.random((40, 30), 300)
    assert pattern.ccol_indices.dtype == torch.int64
    generator = torch.Generator().manual_seed(0)
    assert_candidates(sample_uniform(pattern, 200, generator), pattern, 200)
    assert_candidates(sample_weighted(pattern, torch.rand(40), torch.rand(1, 30), 200, generator), pattern, 200)


def test_conv_statistics_hold_no_unfolded_input():
    """Peak of live tensor bytes while the statistics are computed: far below kh * kw times the input."""
    layer = SparseConv2d(8, 8, 5, padding=2, density=0.1)
    x, grad = torch.randn(8, 8, 32, 32), torch.randn(8, 8, 32, 32)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Sizes():
        statistics.absolute_sums(layer, x, grad)
        statistics.sketched_sums(layer, x, grad, torch.Generator())
    assert largest <= x.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (6, (9, 7), {"kernel_size": 3, "padding": 1}),
        (4, (16, 16), {"kernel_size": 1}),
        (5, (8, 21), {"kernel_size": (2, 5), "stride": (2, 3), "padding": (3, 0)}),
        (8, (13, 12), {"kernel_size": 3, "stride": 2, "dilation": 2, "groups": 4}),
        (3, (61, 70), {"kernel_size": 7, "stride": 2, "padding": 3}),
    ],
)
def test_sums_under_signs_equal_the_products_of_any_device(isa, channels, size, options, dtype):
    torch.manual_seed(0)
    layer = SparseConv2d(channels, 4, density=0.5, dtype=dtype, **options)
    x = torch.randn(3, channels, *size, dtype=dtype)
    grad = torch.randn_like(layer(x))
    signs = WHOLE_BATCH.signs((3, 1, *grad.shape[2:]), x.device, torch.Generator())
    geometry = layer.kernel_size, layer.stride, layer.product_padding, layer.dilation
    for layout in (torch.contiguous_format, torch.channels_last):
        for side, where in ((x, geometry), (grad.detach(), ())):
            wanted = reference.signed_sums(side.double(), signs, *where)
            found = cpu.signed_sums(side.to(memory_format=layout), signs, *where)
            assert found.dtype == torch.promote_types(dtype, torch.float32)
            tolerance = 1e-12 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=10 * tolerance)


def test_draws_are_those_of_the_weights_without_replacement():
    """All candidates of one call, not only the first: compared with numpy's successive sampling."""
    pattern = Pattern.from_coo((2, 3), torch.tensor([1]), torch.tensor([2]))
    rows, cols = torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 2.0, 5.0]])
    weights = (rows[:, None] * cols).double()
    weights[1, 2] = 0
    probabilities = (weights / weights.sum()).flatten().numpy()
    draws = 3000
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    ours, theirs = np.zeros(6), np.zeros(6)
    for _ in range(draws):
        row, col = sample_weighted(pattern, rows, cols, 3, generator).edges()
        ours[(row * 3 + col).numpy()] += 1
        theirs[rng.choice(6, 3, replace=False, p=probabilities)] += 1
    deviation = np.sqrt(draws * 0.5)  # of a difference of two counts, at most
    assert (np.abs(ours - theirs) < 5 * deviation).all()


@pytest.mark.parametrize("shape", [(200, 60), (20, 600)])
def test_many_candidates_follow_their_weights(shape):
    """So many that they are drawn in rounds over the columns: each place's share of the calls, against numpy's."""
    pattern = Pattern.random(shape, 1200, torch.Generator().manual_seed(0))
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    rows, cols = torch.rand(shape[0], generator=generator) + 0.2, torch.rand(2, shape[1], generator=generator) + 0.2
    weights = rows[:, None].double() * cols.repeat_interleave(shape[0] // 2, dim=0)
    weights[pattern.to_mask()] = 0
    probabilities = (weights / weights.sum()).flatten().numpy()
    count, draws = 6000, 250
    ours, even, theirs = np.zeros((3, weights.numel()))
    for _ in range(draws):
        for counts, row_weights, col_weights in (
            (ours, rows, cols),
            (even, torch.ones(shape[0]), torch.ones_like(cols)),
        ):
            candidates = sample_weighted(pattern, row_weights, col_weights, count, generator)
            assert_candidates(candidates, pattern, count)
            row, col = candidates.edges()
            counts[(row * shape[1] + col).numpy()] += 1
        theirs[rng.choice(len(probabilities), count, replace=False, p=probabilities)] += 1

    def deviation(found):
        """Mean square of the differences in standard deviations: 1 where both are draws of one distribution."""
        share = (found + theirs) / (2 * draws)
        varies = (share > 0.02) & (share < 0.98)
        return np.mean((found - theirs)[varies] ** 2 / (2 * draws * share * (1 - share))[varies])

    assert deviation(ours) < 1.1
    assert deviation(even) > 2


def test_candidates_do_not_depend_on_the_number_of_threads():
    pattern = Pattern.random((700, 600), 120_000, torch.Generator().manual_seed(0))
    rows, cols = torch.rand(700, generator=torch.Generator().manual_seed(0)), torch.rand(2, 600)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(3)
        found.append(
            [sample_uniform(pattern, 110_000, generator), sample_weighted(pattern, rows, cols, 110_000, generator)]
        )
    for one, two in zip(found[0] * 2, found[1] + found[2], strict=True):
        assert_candidates(one, pattern, 110_000)
        assert one.equal(two)


# Many and few edges a column, few among many rows, and columns of which nearly all is asked for.
@pytest.mark.parametrize(
    ("shape", "nnz", "count"),
    [
        ((700, 600), 120_000, 110_000),
        ((5000, 4000), 30_000, 30_000),
        ((9001, 300), 9000, 9000),
        ((40, 900), 9000, 20_000),
    ],
)
def test_candidates_do_not_depend_on_the_instruction_set(shape, nnz, count):
    pattern = Pattern.random(shape, nnz, torch.Generator().manual_seed(0))
    rows = torch.rand(shape[0], generator=torch.Generator().manual_seed(1))
    cols = torch.randn(1, shape[1], generator=torch.Generator().manual_seed(2)).abs()
    before = _C.isa()
    found = []
    for name in _C.available_isas():
        _C.use_isa(name)
        generator = torch.Generator().manual_seed(3)
        alike = sample_uniform(pattern, count, generator)
        found.append((alike, sample_weighted(pattern, rows, cols, count, generator)))
    _C.use_isa(before)
    for one, two in itertools.product(found[:1], found):
        for mine, theirs in zip(one, two, strict=True):
            assert_candidates(mine, pattern, count)
            assert mine.equal(theirs)
