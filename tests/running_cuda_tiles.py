"""Run by test_cuda.py in a process of its own: the products over tiles (conv2d, and linear in float32) against their
twins, emulated or on a GPU as in running_cuda.py.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from gpu_backend import DEVICE, FLOATS, HALVES, conflicts, emulate
from gpu_backend import SHARED_BYTES as MUCH
from test_conv2d_kernels import Problem, assert_near, random_problem

from sparsekern.backends import cuda, reference
from sparsekern.backends.cuda import gather, inner, products
from sparsekern.backends.cuda import plans as plans_module
from sparsekern.backends.cuda.extension import kernels
from sparsekern.backends.cuda.products import Operand, inner_plan, sum_plan
from sparsekern.backends.cuda.tiles import Shape, Source

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory", "large_gpu")

LITTLE = 9000  # bytes of shared memory: chunks of few channels, and tiles of few tokens


def placed(problem):
    """The problem with its tensors on the device."""
    for name, value in vars(problem).items():
        if isinstance(value, torch.Tensor):
            setattr(problem, name, value.to(DEVICE))
    return problem


def check(problem, backend=cuda):
    placed(problem)
    expected = problem.results(reference)
    for name, result in problem.results(backend).items():
        assert result.dtype == expected[name].dtype, name
        assert result.shape == expected[name].shape, name
        assert result.is_contiguous(), name
        assert_near(result, expected[name], f"{name} of {problem}")


# Kernel, stride, padding, dilation, groups, (N, C, H, W), O
NAMED = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 4, 5, 6), 5),
    "more images than a tile's": ((3, 1), (1, 1), (1, 0), (1, 1), 1, (33, 3, 4, 2), 9),
    "one pixel": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (19, 6, 1, 1), 5),
    "stride 2 odd": ((3, 3), (2, 2), (1, 1), (1, 1), 1, (15, 4, 7, 5), 6),
    "stride over kernel": ((2, 1), (3, 4), (0, 0), (1, 1), 1, (9, 3, 7, 9), 4),
    "1x1 stride 2": ((1, 1), (2, 2), (0, 0), (1, 1), 1, (17, 4, 4, 5), 8),
    "1x1": ((1, 1), (1, 1), (0, 0), (1, 1), 2, (3, 8, 5, 7), 6),
    "7x7": ((7, 7), (2, 2), (3, 3), (1, 1), 1, (1, 2, 11, 12), 3),
    "depthwise": ((3, 3), (1, 1), (1, 1), (1, 1), 12, (10, 12, 4, 4), 24),
    "groups over blocks": ((1, 1), (1, 1), (0, 0), (1, 1), 3, (16, 9, 2, 2), 150),
    "dilation meets stride": ((3, 3), (2, 3), (2, 2), (2, 2), 1, (16, 2, 7, 8), 4),
    "dilation meets stride in a window": ((1, 5), (1, 3), (0, 4), (1, 2), 1, (16, 2, 2, 31), 4),
    "dilated far": ((3, 3), (1, 1), (9, 9), (9, 9), 1, (2, 2, 10, 11), 4),
    "even": ((4, 2), (1, 1), (2, 1), (1, 1), 1, (8, 3, 5, 5), 6),
    "padding beyond kernel": ((2, 2), (1, 1), (5, 4), (1, 1), 1, (8, 3, 3, 3), 4),
    "few images": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (2, 3, 6, 21), 5),
    "few images, stride": ((3, 5), (2, 2), (1, 2), (1, 1), 1, (1, 3, 9, 19), 5),
    "wide": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (1, 2, 2, 263), 4),
    "no image": ((3, 3), (1, 1), (1, 1), (1, 1), 1, (0, 8, 6, 6), 8),
    "one pixel, rows by four": ((1, 1), (1, 1), (0, 0), (1, 1), 1, (19, 12, 1, 1), 20),
}


def named_problem(name, dtype=torch.float32, density=0.3, **options):
    torch.manual_seed(0)
    *geometry, shape, out_channels = NAMED[name]
    return Problem(torch.randn(shape).to(dtype), out_channels, geometry, density, **options)


@pytest.mark.parametrize("name", NAMED)
def test_conv2d(name):
    number = list(NAMED).index(name)
    for order, dtype in enumerate((torch.float32, HALVES[number % 2])):
        emulate(order_seed=order, shared_bytes=MUCH if (order + number // 2) % 2 else LITTLE)
        check(named_problem(name, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_conv2d_of_random_geometries(dtype):
    for seed in range(6):
        emulate(order_seed=seed, shared_bytes=LITTLE if seed % 2 else MUCH)
        problem = random_problem(100 * FLOATS.index(dtype) + seed, dtype, max_batch=11)
        if problem.grad.numel() + problem.x.numel() < 15_000:
            check(problem)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
def test_densities(density, dtype):
    emulate(order_seed=5)
    check(named_problem("stride 2 odd", dtype, density))


@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_one_edge_alone_in_its_block(dtype):
    for row in (*range(16), 31):
        mask = torch.zeros(32, 3, dtype=torch.bool)
        mask[row, 1] = True
        problem = Problem(torch.randn(9, 3, 2, 2).to(dtype), 32, ((1, 1), (1, 1), (0, 0), (1, 1), 1), 1.0)
        check(restricted(problem, mask))
        plan = sum_plan(Shape(9, 3, (2, 2), 32, (2, 2)), False, problem.row, Operand(problem.x))
        assert plan.block_rows == 32


def test_edges_far_into_a_tile():
    """Cells of more than 12 bits, in one chunk."""
    channels = torch.arange(200)
    mask = torch.zeros(16, 200, dtype=torch.bool)
    mask[channels % 16, channels] = True
    geometry = (1, 1), (1, 1), (0, 0), (1, 1), 1
    problem = placed(restricted(Problem(torch.randn(64, 200, 4, 4).half(), 16, geometry, 1.0), mask))
    csc, shape, x = (problem.ccol, problem.row), Shape(64, 200, (4, 4), 16, (4, 4)), Operand(problem.x)
    for plan in (sum_plan(shape, False, problem.row, x), inner_plan(shape, problem.row, x, Operand(problem.grad))):
        assert (plan.chunk_planes - 1) * plan.tile.pitches[3] > 1 << 12
    for product in (problem.y, lambda backend: backend.conv2d_weight_grad(problem.grad, problem.x, *csc, *geometry)):
        assert_near(product(cuda), product(reference), "more than 12 bits")


# Images, input and output channels, and the cells of tokens that a warp then takes at once.
WIDTHS = {
    "planes, 8": ((1, 4, 3, 5), 3, 8),
    "planes, 16": ((1, 8, 6, 8), 16, 16),
    "planes, 32": ((1, 4, 12, 12), 8, 32),
    "by pixel, 8": ((8, 4, 2, 2), 3, 8),
    "by pixel, 16": ((12, 8, 2, 2), 16, 16),
    "by pixel, 32": ((16, 4, 4, 4), 8, 32),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_each_width_of_a_warp_in_float32(name):
    torch.manual_seed(0)
    shape, out_channels, cells = WIDTHS[name]
    geometry = (3, 3), (1, 1), (1, 1), (1, 1), 1
    problem = placed(Problem(torch.randn(shape), out_channels, geometry, 1.0))
    emulate(order_seed=2)
    sizes = shape[0], shape[1], shape[2:], out_channels, shape[2:]
    plan = sum_plan(Shape(*sizes, *geometry), False, problem.row, Operand(problem.x))
    assert (plan.warp_cells, bool(plan.tile.by_pixel)) == (cells, name.startswith("planes"))
    check(problem)


@pytest.mark.parametrize("processors", [1, 8])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_weight_gradients_of_many_edges_and_tokens(dtype, processors):
    """Blocks with the same edges, each of several tiles; warps with edges of their own, and sharing tokens."""
    torch.manual_seed(0)
    geometry = (3, 3), (1, 1), (1, 1), (1, 1), 1
    problem = placed(Problem(torch.randn(24, 12, 6, 6).to(dtype), 24, geometry, 0.5))
    grad, x, csc = problem.grad, problem.x, (problem.ccol, problem.row)
    expected = reference.conv2d_weight_grad(grad, x, *csc, *geometry)
    for order in range(2):
        emulate(order, MUCH, processors)
        plan = inner_plan(Shape(24, 12, (6, 6), 24, (6, 6), *geometry), problem.row, Operand(x), Operand(grad))
        if processors == 1:
            assert plan.tile.count > 2 * plan.slices > 2
            assert plan.unit_warps == plan.warps
        else:
            assert plan.unit_warps < plan.warps
        assert_near(cuda.conv2d_weight_grad(grad, x, *csc, *geometry), expected, f"{order}")


def test_half_activations_with_float32_values_and_int64_pointers():
    check(named_problem("3x3", torch.bfloat16, w_dtype=torch.float32, index=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["stride 2 odd", "few images"])
def test_results_depend_on_neither_order_nor_strides(name, dtype):
    problem = placed(named_problem(name, dtype))
    expected = problem.results(cuda)
    plain = problem.x, problem.grad
    emulate(order_seed=7)
    spread = [torch.full((*t.shape, 2), torch.nan, dtype=dtype, device=DEVICE)[..., 0].copy_(t) for t in plain]
    last = [t.contiguous(memory_format=torch.channels_last) for t in plain]
    swapped = [t.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2) for t in plain]
    for problem.x, problem.grad in (plain, spread, last, swapped):
        for result, value in problem.results(cuda).items():
            if result != "dbias":  # torch's sum
                assert torch.equal(value, expected[result]), result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(9, 3, 6, 6), (2, 3, 6, 22)])
def test_only_what_edges_join_is_read(shape, dtype):
    """The last line and row of the images meet no output, nor do the second channel and the third row of W."""
    torch.manual_seed(1)
    problem = Problem(torch.randn(shape).to(dtype), 4, ((1, 1), (2, 2), (0, 0), (1, 1), 1), 1.0)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[2], mask[:, 1] = False, False
    problem = placed(restricted(problem, mask))
    expected = problem.results(cuda)
    problem.x[:, 1], problem.x[:, :, 1::2], problem.x[:, :, :, 1::2] = torch.nan, torch.inf, torch.nan
    problem.grad[:, 2] = torch.nan
    for name, value in problem.results(cuda).items():
        if name != "dbias":
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_no_output_multiplies_is_not_read(dtype):
    """The last column is under a tap of the output behind the last, which is in the same cell."""
    problem = placed(Problem(torch.randn(2, 3, 4, 22).to(dtype), 4, ((1, 3), (1, 2), (0, 0), (1, 1), 1), 1.0))
    expected = problem.results(cuda)
    problem.x[..., -1] = torch.nan
    for name, value in problem.results(cuda).items():
        assert torch.equal(value, expected[name]), name


def restricted(problem, mask):
    """The problem with these edges, by a mask of W."""
    cols, rows = mask.t().nonzero(as_tuple=True)
    csr_rows, csr_cols = mask.nonzero(as_tuple=True)
    number = torch.zeros(mask.shape, dtype=torch.int64)
    number[rows, cols] = torch.arange(rows.numel())
    problem.row, problem.col, problem.perm = rows.int(), csr_cols.int(), number[csr_rows, csr_cols].int()
    problem.ccol = F.pad(mask.sum(0).cumsum(0), (1, 0)).int()
    problem.crow = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    problem.w = torch.randn(rows.numel()).to(problem.w.dtype)
    return problem


class Matrices:
    """A float32 linear layer's operands, as a 1x1 convolution's topology has them."""

    def __init__(self, tokens, columns, rows, density):
        torch.manual_seed(tokens)
        problem = Problem(torch.randn(1, columns, 1, 1), rows, ((1, 1), (1, 1), (0, 0), (1, 1), 1), density)
        placed(problem)
        self.csc, self.csr = (problem.ccol, problem.row), (problem.crow, problem.col, problem.perm)
        self.w, self.bias = problem.w, problem.bias
        self.x, self.grad = (torch.randn(tokens, features).to(DEVICE) for features in (columns, rows))

    def results(self, products):
        y = products.linear(self.x, self.w, self.bias, *self.csc, *self.csr)
        return y, *products.linear_backward(self.grad, self.x, self.w, *self.csc, torch.float32)


def test_matrices_are_read_without_many_bank_conflicts():
    torch.manual_seed(0)
    geometry = (3, 3), (1, 1), (1, 1), (1, 1), 1
    problem = placed(Problem(torch.randn(16, 12, 5, 6).bfloat16(), 16, geometry, 0.3))
    grad, x, csc = problem.grad, problem.x, (problem.ccol, problem.row)
    # Lists are short here: that is one of the passes that have less than 8 rows.
    found = (
        conflicts(lambda: problem.y(cuda)),
        conflicts(lambda: cuda.conv2d_input_grad(grad, problem.w, *csc, x.shape[2:], *geometry)),
        conflicts(lambda: cuda.conv2d_weight_grad(grad, x, *csc, *geometry)),
    )
    assert max(found) <= 1.6, found


def check_matrices(operands):
    for value, expected in zip(operands.results(cuda), operands.results(reference), strict=True):
        assert value.is_contiguous()
        assert value.shape == expected.shape
        assert_near(value, expected, str(tuple(operands.x.shape)))


@pytest.mark.parametrize("shape", [(1, 5, 3), (33, 70, 45), (130, 20, 200), (17, 300, 9), (0, 4, 4), (5, 6, 1)])
def test_linear_in_float32(shape):
    for seed, density in enumerate((0.0, 0.1, 1.0)):
        emulate(order_seed=seed, shared_bytes=LITTLE if seed == 1 else MUCH)
        check_matrices(Matrices(*shape, density))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_linear_without_rows_or_columns(shape):
    rows, columns = shape
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    ccol, crow = (torch.zeros(n + 1, dtype=torch.int32, device=DEVICE) for n in (columns, rows))
    x, grad, bias = (torch.ones(*n, device=DEVICE) for n in ((3, columns), (3, rows), (rows,)))
    y = cuda.linear(x, empty.float(), bias, ccol, empty, crow, empty, empty)
    assert torch.equal(y, torch.ones_like(grad))
    dx, dw, _ = cuda.linear_backward(grad, x, empty.float(), ccol, empty, None)
    assert torch.equal(dx, torch.zeros_like(x))
    assert dw.shape == (0,)


def test_layouts_are_kept_and_follow_a_topology_that_changes():
    problem = placed(named_problem("3x3", torch.bfloat16))
    problem.results(cuda)
    made = []
    operand = Operand(problem.x)
    assert operand.source(False) is operand.source(False)  # one copy for all products
    shape = Shape(16, 4, (5, 6), 5, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), 1)
    plan = sum_plan(shape, False, problem.row, operand)
    for _ in range(2):
        gather.kept_layout(problem.ccol, problem.row, plan, lambda: made.append(1))
    assert made == []
    problem.row.copy_(problem.row.flip(0).sort().values)  # counts a version, and nothing is kept of the last one
    gather.kept_layout(problem.ccol, problem.row, plan, lambda: made.append(1))
    assert made == [1]


def test_items_share_out_units():
    """Each unit is in one item, at most a block's in each, and items without units come last."""
    plan = inner.plan_inner(Shape(64, 512, (4, 4), 1000, (4, 4)), True, 20_000, MUCH, 2)
    assert plan.places > 3
    units = torch.randint(0, 3 * plan.block_units, (plan.places,), generator=torch.Generator().manual_seed(0))
    units[0], units[-1] = 2 * plan.block_units, 0
    first = F.pad(units.cumsum(0), (1, 0))
    plan = dataclasses.replace(plan, nnz=int(first[-1]) * plan.unit_edges)
    items = inner._items(plan, first[:-1], first[1:]).tolist()
    shared_out = [unit for _, begin, end, _ in items for unit in range(begin, end)]
    assert sorted(shared_out) == list(range(int(first[-1])))
    sizes = [end - begin for _, begin, end, _ in items]
    assert max(sizes) == plan.block_units
    assert 0 not in sizes[: sum(size > 0 for size in sizes)]
    for place, begin, end, _ in items:
        assert begin == end or first[place] <= begin < end <= first[place + 1]


def test_few_layouts_of_a_topology_are_kept():
    problem = placed(named_problem("3x3"))
    plans, made = list(range(20)), []
    for plan in [*plans, *plans[-8:], 0]:
        plans_module.kept_layout(problem.ccol, problem.row, plan, lambda plan=plan: made.append(plan))
    assert made == [*plans, 0]
    assert len(plans_module._layouts.get(problem.ccol, problem.row)) == 8


@pytest.mark.parametrize("limit", ["_MOST", "fits"])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_what_32_bits_do_not_number_goes_elsewhere(dtype, limit, monkeypatch):
    if limit == "_MOST":
        monkeypatch.setattr(products, "_MOST", 3)
    else:
        monkeypatch.setattr(Source, "fits", lambda source, size: False)
    for kernel in ("gather", "inner"):
        monkeypatch.setattr(products, kernel, None)
    check(named_problem("3x3", dtype))
    if dtype == torch.float32:
        check_matrices(Matrices(5, 6, 7, 0.5))


def test_32_bits_number_the_elements_of_a_channel():
    tensor = torch.empty(0)
    for size, strides, largest in (
        ((2, 1), (0, 2**31 - 1, 7, 7, 1), True),
        ((2, 1), (0, 2**31, 7, 7, 1), False),
        ((1, 3), (0, 7, 2**30, 7, 1), False),
        ((1, 2), (0, 7, 2**30, 2**30 - 1, 2), True),
        ((1, 2), (0, 7, 2**30, 2**30, 2), False),
    ):
        assert Source(tensor, strides).fits(size) == largest


def test_linear_without_room_for_a_tile_goes_elsewhere():
    emulate(shared_bytes=64)
    check_matrices(Matrices(5, 6, 7, 0.5))


LAYERS = [
    Shape(4096, 4096, (1, 1), 4096, (1, 1)),
    Shape(8, 4096, (1, 1), 1000, (1, 1)),
    Shape(256, 64, (56, 56), 64, (56, 56), (3, 3), padding=(1, 1)),
    Shape(256, 256, (56, 56), 512, (28, 28), stride=(2, 2)),
    Shape(256, 3, (224, 224), 64, (112, 112), (7, 7), (2, 2), (3, 3)),
    Shape(1, 512, (7, 7), 512, (7, 7), (3, 3), padding=(1, 1)),
    Shape(64, 3, (224, 224), 768, (14, 14), (16, 16), (16, 16)),
    Shape(128, 512, (14, 14), 512, (14, 14), (3, 3), padding=(1, 1), groups=512),
    Shape(4, 256, (65, 65), 256, (65, 65), (3, 3), padding=(12, 12), dilation=(12, 12)),
]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", LAYERS)
def test_plans_of_networks_fit_their_gpus(shape, half):
    weights = shape.out_channels * shape.channels // shape.groups * shape.taps
    strides = (1, 1, 1, 1, shape.batch)
    for shared_bytes, processors in ((163 * 1024, 108), (MUCH, 132)):
        for nnz in (weights // 100, weights // 10, weights):
            for back in (False, True):
                plan = gather.plan_gather(shape, back, half, nnz, shared_bytes, processors)
                kind = kernels().GatherHalf if half else kernels().Gather
                task = kind(plan.tile.kernel_argument(), plan.numbers(), strides, (1, 1, 1, 1))
                assert task.shared_bytes <= shared_bytes
                assert task.blocks == plan.blocks < 2**31
                assert plan.chunk_planes * plan.tile.pitches[3] <= 8192 or not half
            plan = inner.plan_inner(shape, half, nnz, shared_bytes, processors)
            kind = kernels().InnerHalf if half else kernels().Inner
            tiles = plan.tile.kernel_argument(), plan.tile.of_outputs().kernel_argument()
            task = kind(*tiles, plan.numbers(), plan.units, strides, strides)
            assert task.shared_bytes <= shared_bytes
            assert plan.slices == 1 or plan.slices * plan.units * plan.unit_edges <= max(weights // 2, 3 * nnz)


def test_a_kernel_of_more_taps_than_shared_memory_holds_goes_elsewhere():
    emulate(shared_bytes=400)
    problem = Problem(torch.randn(2, 1, 9, 9), 1, ((7, 7), (1, 1), (0, 0), (1, 1), 1), 0.1)
    shape = Shape(2, 1, (9, 9), 1, (3, 3), (7, 7))
    assert gather.plan_gather(shape, False, False, problem.row.numel(), 400, 2) is None
    assert inner.plan_inner(shape, False, problem.row.numel(), 400, 2) is None
    check(problem)
