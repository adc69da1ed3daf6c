"""Run by test_triton.py in a process of its own: the Triton kernels against their twins.

In Triton's interpreter on the CPU, or, without TRITON_INTERPRET, on a GPU.
"""

import os

import pytest
import torch

import sparsekern
from sparsekern import Pattern, SparseLinear
from sparsekern.backends import reference
from sparsekern.backends import triton as backend
from sparsekern.backends.triton import layout
from sparsekern.backends.triton.layout import by_feature, edge_tile, index_dtype, longest_first, narrow
from sparsekern.testing import forbid_dense

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# The interpreter cuts a float32 off to a bfloat16, where a GPU rounds it.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}
DTYPES = list(TOLERANCE)[:3]
# tokens, columns, rows
SHAPES = [(0, 5, 3), (1, 1, 1), (1, 30, 7), (3, 13, 9), (16, 9, 20), (33, 20, 6), (70, 12, 17), (128, 5, 3)]


class Operands:
    def __init__(self, tokens, mask, dtype=torch.float32, w_dtype=None, wide_pointers=False):
        rows, columns = mask.shape
        ccol, row, crow, col, perm = Pattern.from_mask(mask).tensors()
        if wide_pointers:
            ccol, crow, perm = ccol.long(), crow.long(), perm.long()
        self.topology = ccol, row, crow, col, perm
        self.x = torch.randn(tokens, columns, device=DEVICE).to(dtype)
        self.grad = torch.randn(tokens, rows, device=DEVICE).to(dtype)
        self.w = torch.randn(int(mask.sum()), device=DEVICE).to(w_dtype or dtype)
        self.bias = torch.randn(rows, device=DEVICE).to(w_dtype or dtype)

    def results(self, products):
        x, grad, w, (ccol, row, *by_row) = self.x, self.grad, self.w, self.topology
        dx, dw, dbias = products.linear_backward(grad, x, w, ccol, row, w.dtype)
        return {
            "y": products.linear(x, w, self.bias, ccol, row, *by_row),
            "dx": dx,
            "dw": dw,
            "dbias": dbias,
        }


def random_mask(rows, columns, density):
    mask = torch.rand(rows, columns, device=DEVICE) < density
    if rows > 2 and density < 1:
        mask[rows // 2] = False
    if columns > 2 and density < 1:
        mask[:, columns // 2] = False
    return mask


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.numel() == 0 or actual.stride() == expected.stride()
    scale = max(1.0, expected.double().abs().max().item()) if expected.numel() else 1.0
    assert ((actual.double() - expected.double()).abs() <= tolerance * scale).all()


def assert_equal_their_twins(operands):
    expected = operands.results(reference)
    for name, value in operands.results(backend).items():
        assert_close(value, expected[name], TOLERANCE[operands.x.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_their_twins(shape, dtype):
    torch.manual_seed(SHAPES.index(shape))
    tokens, columns, rows = shape
    for density in (0.0, 0.2, 1.0):
        mask = random_mask(rows, columns, density)
        assert_equal_their_twins(Operands(tokens, mask, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_activations_with_float32_values(dtype):
    operands = Operands(19, random_mask(11, 14, 0.3), dtype, torch.float32)
    assert_equal_their_twins(operands)
    assert operands.results(backend)["dw"].dtype == torch.float32


def test_int64_pointers():
    assert_equal_their_twins(Operands(19, random_mask(11, 14, 0.3), wide_pointers=True))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_no_rows_or_columns(shape):
    assert_equal_their_twins(Operands(3, torch.zeros(shape, dtype=torch.bool, device=DEVICE)))


def test_rows_and_columns_of_very_different_lengths():
    mask = torch.zeros(40, 90, dtype=torch.bool, device=DEVICE)
    mask[7], mask[:, 81], mask[39, 3] = True, True, True
    operands = Operands(5, mask)
    assert_equal_their_twins(operands)
    order = longest_first(operands.topology[2])
    assert order[:2].tolist() == [7, 39]
    assert sorted(order.tolist()) == list(range(40))


def test_the_order_follows_a_topology_that_changes():
    pattern = Pattern.from_mask(torch.tensor([[1] * 6, [1] + [0] * 5, [0] * 6]))
    layer = SparseLinear(6, 3, device=DEVICE, pattern=pattern)
    assert longest_first(layer.crow_indices).tolist() == [0, 1, 2]
    layer.set_pattern(Pattern.from_mask(torch.tensor([[0] * 6, [1] + [0] * 5, [1] * 6])))
    assert longest_first(layer.crow_indices).tolist() == [2, 1, 0]


def test_indices_of_16_bits_where_they_suffice():
    assert (index_dtype(32768), index_dtype(32769)) == (torch.int16, torch.int32)
    mask = torch.zeros(3, 33000, dtype=torch.bool, device=DEVICE)
    mask[0, 5], mask[:2, 32999], mask[2, 32768] = True, True, True
    operands = Operands(2, mask)
    _, row, crow, col, perm = operands.topology
    assert narrow(col, 33000) is col
    short = narrow(row, 3)
    assert short.dtype == torch.int16
    assert torch.equal(short, row)
    assert narrow(row, 3) is short
    row.copy_(row.clone())
    assert narrow(row, 3) is not short
    y = backend.linear(operands.x, operands.w, operands.bias, *operands.topology[:2], crow, col, perm)
    assert_close(y, reference.linear(operands.x, operands.w, operands.bias, *operands.topology), 1e-5)


def test_results_do_not_depend_on_the_indices_dtype(monkeypatch):
    mask = random_mask(9, 30, 0.5)
    torch.manual_seed(0)
    expected = Operands(19, mask).results(backend)
    monkeypatch.setattr(layout, "index_dtype", lambda below: torch.int32)
    torch.manual_seed(0)
    results = Operands(19, mask).results(backend)
    assert all(torch.equal(value, expected[name]) for name, value in results.items())


def test_few_edges_are_spread_and_many_are_not(monkeypatch):
    # What a warp gathers at once, tokens and edges, and how they are shared out: (edges, tokens, warps).
    assert edge_tile(1024, 8192, 10**6) == (8, 64, 1)
    assert edge_tile(1024, 8192, 10**4) == (2, 256, 1)
    assert edge_tile(1024, 8192, 1000) == (1, 4096, 8)
    assert edge_tile(1024, 100, 1000) == (4, 128, 1)
    assert edge_tile(512, 16, 1000) == (16, 16, 1)
    operands = Operands(100, random_mask(5, 7, 0.5))
    assert_equal_their_twins(operands)
    monkeypatch.setattr(layout, "_PROGRAMS", 1)
    assert_equal_their_twins(operands)


def strided(name, tensor):
    """The same values elsewhere in memory."""
    tokens, features = tensor.shape
    if name == "every second feature":
        return torch.stack([tensor, torch.full_like(tensor, float("nan"))], 2).flatten(1)[:, ::2]
    if name == "by feature":
        return tensor.t().contiguous().t()
    if name == "by feature, not aligned":
        return torch.cat([tensor.new_full((1,), float("nan")), tensor.t().flatten()])[1:].view(features, tokens).t()
    return tensor[:, :1].expand(tokens, features)


@pytest.mark.parametrize("tokens", [16, 21])
@pytest.mark.parametrize("name", ["every second feature", "by feature", "by feature, not aligned", "expanded"])
def test_strided_operands(name, tokens):
    operands = Operands(tokens, random_mask(10, 12, 0.4))
    operands.x, operands.grad = strided(name, operands.x), strided(name, operands.grad)
    operands.w = torch.stack([operands.w, operands.w + 1], 1)[:, 0]
    operands.bias = operands.bias[:1].expand(10)
    assert_equal_their_twins(operands)


def test_activations_that_lie_by_feature_are_not_copied():
    x = torch.randn(7, 32, device=DEVICE).t()
    assert by_feature(x).data_ptr() == x.data_ptr()
    assert by_feature(x[:31]).data_ptr() != x.data_ptr()


def test_only_what_edges_join_is_read():
    mask = random_mask(9, 12, 0.3)
    operands = Operands(18, mask)
    operands.x[:, 6] = float("nan")  # the empty column
    operands.grad[:, 4] = float("inf")  # the empty row
    results = operands.results(backend)
    assert all(results[name].isfinite().all() for name in ("y", "dx", "dw"))
    joined = int(mask.any(0).nonzero()[0])
    operands.x[3, joined] = float("nan")
    y = operands.results(backend)["y"]
    assert y.isnan().any(1).nonzero().tolist() == [[3]]
    assert torch.equal(y[3].isnan(), mask[:, joined])


def test_results_are_the_same_each_time():
    operands = Operands(70, random_mask(9, 30, 0.5), torch.float16)
    first, second = operands.results(backend), operands.results(backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_float64_is_the_references():
    operands = Operands(5, random_mask(9, 12, 0.4), torch.float64)
    expected = operands.results(reference)
    assert all(torch.equal(value, expected[name]) for name, value in operands.results(backend).items())


def step(layer, name, images, other):
    """Everything that a training step and an update compute with a layer's edges."""
    x = images.clone().requires_grad_()
    with sparsekern.backend(name):
        y = layer(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        ((y.square().sum()) + dx.square().sum()).backward()
        grad = torch.autograd.grad(y.sum(), y)[0]
        at_others = layer.weight_grad_at(grad, x.detach(), other)
        with torch.inference_mode():
            again = layer(images)
    values = [y, dx, x.grad, layer.weight.grad, layer.bias.grad, at_others, again]
    layer.zero_grad()
    return [value.detach().clone() for value in values]


def test_layers_train_as_with_other_backends():
    torch.manual_seed(3)
    layer = SparseLinear(20, 13, density=0.2, device=DEVICE)
    images, other = torch.randn(2, 3, 20, device=DEVICE), Pattern.random((13, 20), 30).to(DEVICE)
    twins = step(layer, "cpu" if DEVICE == "cpu" else "reference", images, other)
    for value, expected in zip(step(layer, "triton", images, other), twins, strict=True):
        assert_close(value, expected, 1e-5)


def test_autocast():
    layer = SparseLinear(20, 13, density=0.2, device=DEVICE)
    x = torch.randn(5, 20, device=DEVICE, requires_grad=True)
    with sparsekern.backend("triton"), torch.autocast(DEVICE, torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    assert_close(y.float(), layer(x.detach()), 2e-2)


def test_operators_under_torchs_checks():
    operands = Operands(3, random_mask(5, 6, 0.5))
    operands.x.requires_grad_()
    with sparsekern.backend("triton"):
        arguments = operands.x, operands.w, operands.bias, *operands.topology
        torch.library.opcheck(torch.ops.sparsekern.linear, arguments, test_utils=["test_schema", "test_faketensor"])
        arguments = operands.grad, operands.x.detach(), operands.w, *operands.topology[:2]
        torch.library.opcheck(torch.ops.sparsekern.linear_backward, arguments, test_utils="test_faketensor")


def test_training_with_growth_makes_nothing_dense():
    torch.use_deterministic_algorithms(False)  # torch's operators on a GPU need not all have a form of that kind
    torch.manual_seed(0)
    options = {"density": 0.05, "device": DEVICE}
    model = torch.nn.Sequential(SparseLinear(40, 50, **options), torch.nn.ReLU(), SparseLinear(50, 30, **options))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    growth = sparsekern.GSE(model, optimizer, sampler="grabo", interval=2, end=10)
    before = model[0].row_indices.clone()
    losses = []
    x, target = torch.randn(7, 40, device=DEVICE), torch.randn(7, 30, device=DEVICE)
    with sparsekern.backend("triton"), forbid_dense(model):
        for _ in range(4):
            loss = torch.nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            growth.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(before, model[0].row_indices)


def test_what_is_chosen():
    layer = SparseLinear(4, 3, density=0.5, device=DEVICE)
    with sparsekern.backend("triton"):
        assert sparsekern.backend_of(layer) == "triton"
        assert sparsekern.backend_of(layer.double()) == "reference"
        convolution = sparsekern.SparseConv2d(4, 3, 3, density=0.5, device=DEVICE)
        assert sparsekern.backend_of(convolution) == "triton"
        assert sparsekern.backend_of(convolution.double()) == "reference"
