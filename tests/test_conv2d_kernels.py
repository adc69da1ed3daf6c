"""The conv2d kernels against their torch twins, and those against torch's dense convolution."""

import random

import pytest
import torch
import torch.nn.functional as F

from sparsekern import _C
from sparsekern.backends import _cpu_conv2d as cpu
from sparsekern.backends import _reference_conv2d as reference

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


# Tile elements, work of a thread, bytes of a row tile and of a panel, edges in a panel, in one of lanes, and of a
# channel for shifted tiles: little
# enough that images are worked on in bands of a few rows and in many panels of channels, and by threads always.
LIMITS = {
    "rows": [2000, 1, 8000, 200, 0, 1 << 40, 1 << 40],
    "rows, forward in lanes": [2000, 1, 8000, 200, 0, 0, 1 << 40],
    "lanes": [2000, 1, 0, 200, 0, 0, 0],
    "shifted": [1 << 20, 1, 1 << 20, 200, 0, 0, 0],
}


@pytest.fixture(params=LIMITS)
def tiny_tiles(request):
    before = _C.conv2d_exchange_limits(LIMITS[request.param])
    yield
    _C.conv2d_exchange_limits(before)


class Problem:
    """A convolution, its pattern and its operands."""

    def __init__(self, x, out_channels, geometry, density, w_dtype=None, index=torch.int32):
        self.x = x
        self.geometry = kernel_size, stride, padding, dilation, groups = geometry
        columns = x.shape[1] // groups * kernel_size[0] * kernel_size[1]
        self.mask = torch.rand(out_channels, columns) < density
        cols, rows = self.mask.t().nonzero(as_tuple=True)
        csr_rows, csr_cols = self.mask.nonzero(as_tuple=True)
        number = torch.zeros(self.mask.shape, dtype=torch.int64)
        number[rows, cols] = torch.arange(rows.numel())
        self.row, self.col = rows.int(), csr_cols.int()
        self.ccol = F.pad(self.mask.sum(0).cumsum(0), (1, 0)).to(index)
        self.crow = F.pad(self.mask.sum(1).cumsum(0), (1, 0)).to(index)
        self.perm = number[csr_rows, csr_cols].to(index)
        self.w = torch.randn(rows.numel()).to(w_dtype or x.dtype)
        self.bias = torch.randn(out_channels).to(self.w.dtype)
        output_size = cpu._output_size(x.shape[2:], kernel_size, stride, padding, dilation)
        self.grad = torch.randn(x.shape[0], out_channels, *output_size).to(x.dtype)

    def y(self, backend, bias=True):
        bias = self.bias if bias else None
        pattern = self.ccol, self.row, self.crow, self.col, self.perm
        return backend.conv2d(self.x, self.w, bias, *pattern, *self.geometry)

    def results(self, backend, threads=1):
        """Every product, by name."""
        torch.set_num_threads(threads)
        csc = (self.ccol, self.row)
        operands = self.grad, self.x, self.w, *csc, *self.geometry
        dx, dw, dbias = backend.conv2d_backward(*operands, self.w.dtype)
        *_, none = backend.conv2d_backward(*operands, None)
        assert none.shape == (0,)
        results = {
            "y": self.y(backend),
            "y without bias": self.y(backend, bias=False),
            "dx": dx,
            "dw": dw,
            "dbias": dbias,
            "dx alone": backend.conv2d_input_grad(self.grad, self.w, *csc, self.x.shape[2:], *self.geometry),
            "dw alone": backend.conv2d_weight_grad(self.grad, self.x, *csc, *self.geometry),
        }
        torch.set_num_threads(1)
        return results

    def check(self, threads=1):
        expected = self.results(reference)
        for name, result in self.results(cpu, threads).items():
            assert result.dtype == expected[name].dtype, name
            assert result.shape == expected[name].shape, name
            assert_near(result, expected[name], f"{name} of {self}")

    def __str__(self):
        shapes = (tuple(self.x.shape), self.x.dtype, self.w.dtype, tuple(self.mask.shape))
        return f"{shapes} kernel, stride, padding, dilation, groups {self.geometry}"


def assert_near(result, expected, what):
    if expected.numel() == 0:
        return
    result, dtype = result.double(), expected.dtype
    expected = expected.double()
    assert torch.isfinite(result).all(), what
    error = (result - expected).abs().max() / (1 + expected.abs().max())
    assert error <= TOLERANCE[dtype], f"{what}: error {error:.2e}"


def random_problem(seed, dtype=torch.float32, max_batch=36):
    torch.manual_seed(seed)
    pick = random.Random(seed)
    kernel = (pick.choice([1, 2, 3, 3, 5]), pick.choice([1, 2, 3, 3, 4]))
    if pick.random() < 0.25:
        kernel = (1, 1)
    stride = (1, 1) if pick.random() < 0.4 else (pick.randint(1, 4), pick.randint(1, 4))
    dilation = (1, 1) if pick.random() < 0.6 else (pick.randint(1, 3), pick.randint(1, 3))
    padding = (0, 0) if pick.random() < 0.3 else (pick.randint(0, 4), pick.randint(0, 4))
    groups = pick.choice([1, 1, 1, 2, 3])
    channels, out_channels = groups * pick.randint(1, 6), groups * pick.randint(1, 7)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [low + pick.choice([0, 1, 3, 7, 10, 18]) for low in smallest]
    batch = pick.choice([0, 1, 2, 3, 7, 8, 15, 16, 17, 24, 33, max_batch])
    w_dtype = pick.choice([dtype, torch.float32]) if dtype in (torch.bfloat16, torch.float16) else dtype
    x = torch.randn(batch, channels, *size).to(dtype)
    density = pick.choice([0.0, 0.02, 0.1, 0.3, 0.7, 1.0])
    index = pick.choice([torch.int32, torch.int64])
    geometry = (kernel, stride, padding, dilation, groups)
    return Problem(x, out_channels, geometry, density, w_dtype, index)


# Kernel, stride, padding, dilation, groups, (N, C, H, W), O
NAMED = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 8, 16, 16), 12),
    "24 wide": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 3, 6, 24), 6),
    "14 wide": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 5, 14, 14), 6),
    "8x8 planes": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (32, 6, 8, 8), 5),
    "4x4 planes": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (19, 6, 4, 4), 5),
    "one pixel": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (19, 6, 1, 1), 5),
    "stride 2": ((3, 3), (2, 2), (1, 1), (1, 1), 1, (18, 6, 16, 16), 8),
    "stride 2 odd": ((3, 3), (2, 2), (1, 1), (1, 1), 1, (18, 6, 15, 13), 8),
    "stride over kernel": ((2, 1), (3, 4), (0, 0), (1, 1), 1, (17, 4, 11, 12), 8),
    "1x1 stride 2": ((1, 1), (2, 2), (0, 0), (1, 1), 1, (17, 4, 8, 8), 8),
    "1x1 direct": ((1, 1), (1, 1), (0, 0), (1, 1), 1, (5, 20, 14, 14), 24),
    "1x1 direct, aligned": ((1, 1), (1, 1), (0, 0), (1, 1), 2, (3, 8, 16, 16), 6),
    "1x1 padded": ((1, 1), (1, 1), (1, 2), (1, 1), 1, (17, 4, 8, 8), 8),
    "depthwise": ((3, 3), (1, 1), (1, 1), (1, 1), 12, (20, 12, 9, 9), 24),
    "depthwise stride": ((5, 3), (2, 1), (2, 1), (1, 2), 12, (20, 12, 9, 9), 12),
    "dilated": ((3, 3), (1, 1), (2, 2), (2, 2), 1, (20, 5, 10, 10), 6),
    "dilation meets stride": ((3, 3), (2, 3), (2, 2), (2, 2), 1, (20, 5, 13, 14), 6),
    "even": ((4, 2), (1, 1), (2, 1), (1, 1), 1, (20, 5, 9, 9), 6),
    "padding beyond kernel": ((2, 2), (1, 1), (5, 4), (1, 1), 1, (18, 3, 3, 3), 4),
    "single image": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (1, 8, 32, 32), 8),
    "wide": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (2, 3, 5, 70), 4),
    "wider than a block": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (2, 3, 3, 300), 4),
    "1x1 of several blocks": ((1, 1), (1, 1), (0, 0), (1, 1), 1, (2, 3, 17, 29), 40),
    "no image": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (0, 8, 6, 6), 8),
}


def named_problem(name, dtype=torch.float32, density=0.3, **options):
    torch.manual_seed(0)
    *geometry, shape, out_channels = NAMED[name]
    return Problem(torch.randn(shape).to(dtype), out_channels, geometry, density, **options)


@pytest.mark.parametrize("name", NAMED)
def test_reference_is_torchs_dense_convolution(name):
    problem = named_problem(name, torch.float64)
    dense = torch.zeros(problem.mask.shape, dtype=torch.float64)
    dense.t()[problem.mask.t()] = problem.w
    kernel_size, stride, padding, dilation, groups = problem.geometry
    weight = dense.view(dense.shape[0], -1, *kernel_size).requires_grad_()
    x = problem.x.clone().requires_grad_()
    y = F.conv2d(x, weight, problem.bias, stride, padding, dilation, groups)
    y.backward(problem.grad)
    results = problem.results(reference)
    dw = weight.grad.view(problem.mask.shape).t()[problem.mask.t()]
    for result, expected in [("y", y), ("dx", x.grad), ("dx alone", x.grad), ("dw", dw), ("dw alone", dw)]:
        assert_near(results[result], expected.detach(), result)


def test_reference_in_chunks(monkeypatch):
    problem = named_problem("dilation meets stride", torch.float64)
    whole = problem.results(reference)
    monkeypatch.setattr(reference, "_CHUNK", 1)
    for name, result in problem.results(reference).items():
        assert_near(result, whole[name], name)


@pytest.mark.parametrize("name", NAMED)
def test_named_geometries(name, isa):
    for dtype in (torch.float32, torch.float64):
        named_problem(name, dtype).check(threads=2)


@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("name", ["3x3", "stride 2", "1x1 direct", "single image", "depthwise"])
def test_densities(name, density, isa):
    named_problem(name, density=density).check()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_random_geometries(dtype, isa):
    for seed in range(80 if dtype == torch.float32 else 30):
        random_problem(1000 + seed, dtype).check()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bands_of_rows_and_threads(threads, tiny_tiles, isa):
    for name in NAMED:
        named_problem(name).check(threads)
    for seed in range(12):
        random_problem(5000 * threads + seed).check(threads)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["3x3", "1x1 direct", "depthwise", "24 wide"])
def test_panels_of_any_dtype(name, dtype, density, tiny_tiles):
    named_problem(name, dtype, density).check(2)


@pytest.mark.parametrize("name", NAMED)
def test_rows_of_pairs(name, tiny_tiles, isa):
    """bfloat16 rows are multiplied two pixels to a word: named geometries with rows of 16, 32 and more pixels."""
    named_problem(name, torch.bfloat16, w_dtype=torch.float32).check(2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 16, 4, 8), (1, 40, 5, 16), (2, 33, 1, 33), (0, 2, 3, 3)])
def test_channels_last_made_planar(shape, dtype, isa):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    planar = cpu._planar(x)
    assert planar.is_contiguous()
    assert torch.equal(planar, x)


def test_large_channels_last_made_planar(isa):
    x = torch.randn(3, 64, 64, 64).contiguous(memory_format=torch.channels_last)
    assert torch.equal(cpu._planar(x), x)
    assert cpu._planar(x).is_contiguous()


@pytest.mark.parametrize("name", ["3x3", "stride 2 odd", "1x1 direct", "single image"])
def test_inputs_of_any_strides(name):
    problem = named_problem(name)
    expected = problem.results(cpu)
    plain = problem.x, problem.grad
    spread = [torch.randn(*t.shape[:-1], 2 * t.shape[-1])[..., ::2].copy_(t) for t in plain]
    swapped = [t.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2) for t in plain]
    last = [t.contiguous(memory_format=torch.channels_last) for t in plain]
    for problem.x, problem.grad in (spread, swapped, last):
        assert not problem.x.is_contiguous()
        for name, result in problem.results(cpu).items():
            assert torch.equal(result, expected[name]), name
    problem.x, problem.grad = plain[0], plain[0].new_ones(()).expand_as(plain[1])
    assert_near(problem.results(cpu)["dw"], problem.results(reference)["dw"], "expanded grad")


def check_same_bits(threads, name, dtype=torch.float32):
    problem = named_problem(name, dtype)
    first = problem.results(cpu, threads)
    for _ in range(3):
        named_problem("dilated", dtype).results(cpu, threads)  # leaves other values in the working memory
        for key, result in problem.results(cpu, threads).items():
            assert torch.equal(result, first[key]), key


@pytest.mark.parametrize("name", ["3x3", "stride 2", "1x1 direct", "4x4 planes", "single image"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_each_time(dtype, threads, name):
    check_same_bits(threads, name, dtype)


@pytest.mark.parametrize("name", ["3x3", "stride 2", "1x1 direct", "4x4 planes", "single image"])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_each_time_in_tiny_tiles(threads, name, tiny_tiles):
    check_same_bits(threads, name)


def test_working_memory_left_by_others_does_not_show():
    """Non-finite activations of one call must not reach the next through the scratch's gaps."""
    for name in ("3x3", "single image", "4x4 planes"):
        bad = named_problem(name)
        bad.x, bad.grad = torch.full_like(bad.x, torch.nan), torch.full_like(bad.grad, torch.inf)
        for good in NAMED:
            bad.results(cpu)
            named_problem(good).check()


def test_weight_grad_in_a_given_dtype():
    problem = named_problem("3x3", torch.bfloat16)
    args = (problem.grad, problem.x, problem.ccol, problem.row, *problem.geometry)
    for dtype in (torch.float32, torch.bfloat16):
        result, expected = (b.conv2d_weight_grad(*args, dtype=dtype) for b in (cpu, reference))
        assert result.dtype == dtype
        assert_near(result, expected, str(dtype))
