"""The operators: schemas, derivatives, torch.compile, autocast, and what they refuse."""

import copy
import re

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.ops import functional
from sparsekern.ops.schemas import SCHEMAS

LINEAR = torch.ops.sparsekern.linear
GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 2), (2, 3), (2, 0), (2, 1), 2),
    ((1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 2), (3, 3), (0, 1), (1, 1), 4),
]


def make_linear(dtype=torch.float32, density=0.3):
    torch.manual_seed(0)
    pattern = sk.Pattern.random((7, 5), round(35 * density))
    x, w, bias = torch.randn(6, 5, dtype=dtype), torch.randn(pattern.nnz, dtype=dtype), torch.randn(7, dtype=dtype)
    return x, w, bias, pattern


def make_conv(geometry, dtype=torch.float32):
    torch.manual_seed(0)
    kernel, *_, groups = geometry
    columns = 4 // groups * kernel[0] * kernel[1]
    pattern = sk.Pattern.random((8, columns), 8 * columns // 2)
    x, w, bias = (
        torch.randn(3, 4, 7, 6, dtype=dtype),
        torch.randn(pattern.nnz, dtype=dtype),
        torch.randn(8, dtype=dtype),
    )
    return x, w, bias, pattern


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_linear(dtype, device):
    *operands, pattern = make_linear(dtype)
    x, w, bias, pattern = *(operand.to(device) for operand in operands), pattern.to(device)
    ccol, row, *_ = pattern.tensors()
    ops = torch.ops.sparsekern
    grad = LINEAR(x, w, bias, *pattern.tensors())
    for op, args in (
        (ops.linear, (x, w, bias, *pattern.tensors())),
        (ops.linear, (x, w, None, *pattern.tensors())),
        (ops.linear_backward, (grad, x, w, ccol, row)),
        (ops.linear_input_grad, (grad, w, ccol, row)),
        (ops.linear_weight_grad, (grad, x, ccol, row)),
    ):
        torch.library.opcheck(op, args)
    torch.library.opcheck(ops.linear_weight_grad, (grad, x, ccol, row), {"dtype": dtype})
    torch.library.opcheck(ops.linear_backward, (grad, x, w, ccol, row), {"bias_dtype": dtype})


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_opcheck_conv2d(geometry, device):
    *operands, pattern = make_conv(geometry)
    x, w, bias, pattern = *(operand.to(device) for operand in operands), pattern.to(device)
    ccol, row, *_ = pattern.tensors()
    ops = torch.ops.sparsekern
    grad = ops.conv2d(x, w, bias, *pattern.tensors(), *geometry)
    for op, args in (
        (ops.conv2d, (x, w, bias, *pattern.tensors(), *geometry)),
        (ops.conv2d_backward, (grad, x, w, ccol, row, *geometry)),
        (ops.conv2d_input_grad, (grad, w, ccol, row, x.shape[2:], *geometry)),
        (ops.conv2d_weight_grad, (grad, x, ccol, row, *geometry)),
    ):
        torch.library.opcheck(op, args)
    torch.library.opcheck(ops.conv2d_backward, (grad, x, w, ccol, row, *geometry), {"bias_dtype": x.dtype})


def assert_differentiable(function, tensors):
    tensors = tuple(tensor.double().requires_grad_() for tensor in tensors)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)
    # Each operand alone: the fused backward is not taken then.
    for i in range(len(tensors)):
        alone = tuple(tensor.detach().requires_grad_(j == i) for j, tensor in enumerate(tensors))
        assert torch.autograd.gradcheck(function, alone)
        assert torch.autograd.gradgradcheck(function, alone)


def test_linear_derivatives():
    x, w, bias, pattern = make_linear()
    assert_differentiable(lambda x, w, bias: functional.linear(x, w, pattern, bias), (x[:3], w, bias))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_derivatives(geometry):
    x, w, bias, pattern = make_conv(geometry)
    assert_differentiable(
        lambda x, w, bias: functional.conv2d(x, w, pattern, geometry, bias), (x[:1, :, :5, :4], w, bias)
    )


def test_third_derivative():
    """The products' gradients are the products, however often."""
    x, w, _, pattern = make_linear(torch.float64)
    x, w = x[:2].requires_grad_(), w.requires_grad_()

    def second(x, w):
        y = functional.linear(x, w, pattern).pow(3).sum()
        dx, dw = torch.autograd.grad(y, (x, w), create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum() + dw.pow(2).sum(), (x, w), create_graph=True)

    assert torch.autograd.gradcheck(second, (x, w))


def test_functional_transforms():
    x, w, bias, pattern = make_linear(torch.float64)
    dense = torch.zeros(7, 5, dtype=torch.float64)
    dense[pattern.edges()] = w
    dw = torch.func.grad(lambda w: functional.linear(x, w, pattern, bias).square().sum())(w)
    expected = torch.func.grad(lambda d: nn.functional.linear(x, d, bias).square().sum())(dense)
    torch.testing.assert_close(dw, expected[pattern.edges()])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = sk.SparseConv2d(2, 6, 3, padding=1, density=0.4)
        self.norm = nn.BatchNorm2d(6)
        self.head = sk.SparseLinear(6 * 16, 5, density=0.2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for batch in (4, 4, 7):
        x = torch.randn(batch, 2, 4, 4)
        compiled(x).square().sum().backward()
        twin(x).square().sum().backward()
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_compiled_cuda_graphs_leave_the_products_out():
    """What a first product keeps of a topology would lie in a graph's memory, which torch.compile does not allow."""
    for name in SCHEMAS:
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.sparsekern, name).default.tags


def test_export():
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(3, 2, 4, 4)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(5, 2, 4, 4)
    exact = net(x)
    with torch.autocast("cpu", dtype=dtype):
        y = net(x)
        assert y.dtype == dtype
        loss = y.float().square().sum()
    loss.backward()
    torch.testing.assert_close(y.float(), exact, atol=0.1, rtol=0.1)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


def test_grad_of_an_expanded_output():
    x, w, bias, pattern = make_linear()
    w.requires_grad_()
    functional.linear(x, w, pattern, bias).sum().backward()
    expected = x.sum(0)[pattern.edges()[1]]
    torch.testing.assert_close(w.grad, expected)


def test_dynamic_batch_zero():
    x, w, bias, pattern = make_linear()
    w.requires_grad_()
    y = functional.linear(x[:0], w, pattern, bias)
    y.sum().backward()
    assert y.shape == (0, 7)
    assert (w.grad == 0).all()


def raises(error, *words):
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(word) for word in words))


def test_refusals_name_the_argument():
    x, w, bias, pattern = make_linear()
    topology = pattern.tensors()
    with raises(ValueError, "input", "(6, 4)", "5"):
        LINEAR(x[:, :4], w, bias, *topology)
    with raises(ValueError, "weight", str(w.numel() - 1), str(w.numel())):
        LINEAR(x, w[1:], bias, *topology)
    with raises(ValueError, "bias", "(6,)", "7"):
        LINEAR(x, w, bias[1:], *topology)
    with raises(TypeError, "weight", "float64", "float32"):
        LINEAR(x, w.double(), bias, *topology)
    with raises(TypeError, "input", "int64"):
        LINEAR(x.long(), w, bias, *topology)
    with raises(TypeError, "row_indices", "float"):
        LINEAR(x, w, bias, topology[0], topology[1].float(), *topology[2:])
    with raises(ValueError, "grad", "(5, 7)", "6"):
        torch.ops.sparsekern.linear_weight_grad(torch.randn(5, 7), x, *topology[:2])
    with raises(ValueError, "input", "(6, 4)", "5"):
        functional.linear(x[:, :4], w, pattern)
    geometry = GEOMETRIES[0]
    cx, cw, _, cpattern = make_conv(geometry)
    with raises(ValueError, "input of size (1, 1)", "kernel"):
        functional.conv2d(cx[:, :, :1, :1], cw, cpattern, ((3, 3), (1, 1), (0, 0), (1, 1), 1))
    with raises(ValueError, "stride", "(0, 1)"):
        functional.conv2d(cx, cw, cpattern, ((3, 3), (0, 1), (0, 0), (1, 1), 1))
    with raises(ValueError, "input", "(3, 3, 7, 6)", "4"):
        functional.conv2d(cx[:, :3], cw, cpattern, geometry)


def broken_topologies(pattern):
    """The five tensors with one thing wrong each, and a word that the error must say."""
    names = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "permutation")
    for i, name in enumerate(names):
        for value in (-1, 10**6):
            tensors = [tensor.clone() for tensor in pattern.tensors()]
            tensors[i][tensors[i].numel() // 2] = value
            yield tensors, name
    tensors = [tensor.clone() for tensor in pattern.tensors()]
    tensors[4][:2] = tensors[4][:2].flip(0)
    yield tensors, "permutation"
    tensors = [tensor.clone() for tensor in pattern.tensors()]
    tensors[0][-1] += 1
    yield tensors, "ccol_indices"


def test_wrong_indices_raise():
    x, w, bias, pattern = make_linear(density=0.6)
    for tensors, _ in broken_topologies(pattern):
        with pytest.raises(ValueError):
            LINEAR(x, w, bias, *tensors)
    grad = torch.randn(6, 7)
    for tensors, name in broken_topologies(pattern):
        if name in ("ccol_indices", "row_indices"):
            with raises(ValueError, name):
                torch.ops.sparsekern.linear_backward(grad, x, w, *tensors[:2])


def test_an_index_made_wrong_after_use_raises():
    x, w, bias, pattern = make_linear(density=0.6)
    LINEAR(x, w, bias, *pattern.tensors())
    pattern.col_indices[3] = 10**6
    with raises(ValueError, "col_indices"):
        LINEAR(x, w, bias, *pattern.tensors())


def test_changing_the_topology_between_forward_and_backward_raises():
    torch.manual_seed(0)
    layer = sk.SparseLinear(5, 7, density=0.3)
    y = layer(torch.randn(3, 5))
    layer.set_pattern(sk.Pattern.random((7, 5), layer.nnz))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def plain_calls(layer, x):
    """The layer's output in the first call, by the operator, and in a later one, past torch's dispatcher."""
    with torch.no_grad():
        return layer(x), layer(x)


@pytest.mark.parametrize("shape", [(7, 30), (30,), (2, 3, 30), (0, 30)])
def test_calls_past_the_dispatcher_are_the_operator(shape):
    layer = sk.nn.SparseLinear(30, 20, density=0.3)
    x = torch.randn(shape)
    first, later = plain_calls(layer, x)
    assert torch.equal(first, later)
    assert not later.requires_grad
    y = layer(x)
    assert y.requires_grad
    assert torch.equal(y, first)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert not layer(x).requires_grad


def test_calls_past_the_dispatcher_refuse_what_the_operator_refuses():
    layer = sk.nn.SparseLinear(30, 20, density=0.3)
    plain_calls(layer, torch.randn(7, 30))
    weight, bias, pattern = layer.weight.detach(), layer.bias.detach(), layer.pattern
    x = torch.randn(7, 30)
    for error, words, arguments in (
        (ValueError, "input has shape", (x[:, 1:], weight, pattern, bias)),
        (TypeError, "input has dtype", (x.long(), weight, pattern, bias)),
        (TypeError, "weight has dtype", (x, weight.double(), pattern, bias)),
        (TypeError, "bias has dtype", (x, weight, pattern, bias.half())),
        (ValueError, "weight has shape", (x, weight[1:], pattern, bias)),
        (ValueError, "bias has shape", (x, weight, pattern, bias[1:])),
        (ValueError, "weight is on", (x, weight.to("meta"), pattern, bias)),
    ):
        with pytest.raises(error, match=words):
            functional.linear(*arguments)
    layer.col_indices[0] = 99
    with torch.no_grad(), pytest.raises(ValueError, match="col_indices"):
        layer(x)


def test_calls_past_the_dispatcher_take_any_strides():
    layer = sk.nn.SparseLinear(30, 20, density=0.3)
    x = torch.randn(30, 7).t()
    first, later = plain_calls(layer, x)
    assert torch.equal(later, first)
    assert torch.equal(layer(x.contiguous()), first)
    negative = torch.complex(torch.zeros(7, 30), x.contiguous()).conj().imag  # marked as negated, not yet written so
    with torch.no_grad():
        assert torch.equal(layer(negative), layer(-x.contiguous()))


@pytest.mark.parametrize("shape", [(30,), (1, 1, 30), (2, 3, 30), (2, 0, 30), (1, 2, 1, 1, 1, 1, 1, 1, 30)])
def test_calls_past_the_dispatcher_take_any_number_of_dimensions(shape):
    layer = sk.nn.SparseLinear(30, 20, density=0.3)
    x = torch.randn(shape)
    matrix, _ = plain_calls(layer, x.reshape(-1, 30))
    for _ in range(3):
        first, later = plain_calls(layer, x)
        assert first.shape == (*shape[:-1], 20)
        assert torch.equal(first, matrix.reshape(first.shape))
        assert torch.equal(later, first)


class SeenOperators(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the names of sparsekern's operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sparsekern":
            self.names.append(func.name().removeprefix("sparsekern::"))
        return func(*args, **(kwargs or {}))


def test_who_watches_operators_sees_the_linear_one():
    layer = sk.nn.SparseLinear(30, 20, density=0.3)
    x = torch.randn(7, 30)
    expected, _ = plain_calls(layer, x)
    with torch.no_grad():
        with SeenOperators() as seen:
            layer(x)
        with torch.profiler.profile() as profile:
            layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        mapped = torch.func.vmap(lambda row: layer(row.unsqueeze(0)).squeeze(0), chunk_size=1)(x)
        graph = torch.fx.experimental.proxy_tensor.make_fx(layer)(x)
    assert seen.names == ["linear"]
    assert "sparsekern::linear" in {event.name for event in profile.events()}
    torch.testing.assert_close(mapped, expected)
    assert torch.ops.sparsekern.linear.default in {node.target for node in graph.graph.nodes}


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_training_step_past_the_dispatcher_is_the_operators(kind):
    torch.manual_seed(0)
    if kind == "linear":
        layer, x = sk.nn.SparseLinear(30, 20, density=0.3), torch.randn(7, 30)
    else:
        layer, x = sk.nn.SparseConv2d(4, 6, 3, density=0.3), torch.randn(2, 4, 7, 7)

    def step(x):
        layer.zero_grad()
        x = x.detach().requires_grad_()
        layer(x).square().sum().backward()
        return [x.grad, layer.weight.grad, layer.bias.grad]

    step(x)
    plain = step(x)
    with SeenOperators() as seen:
        watched = step(x)
    assert seen.names == [kind, f"{kind}_backward"]
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    # A gradient that is marked as negated, and not yet written so, is read as what it means.
    y = layer(x)
    one = torch.ones_like(y)
    negated = torch.complex(torch.zeros_like(y), one).detach().conj().imag
    (expected,) = torch.autograd.grad(y, layer.weight, -one, retain_graph=True)
    (found,) = torch.autograd.grad(y, layer.weight, negated)
    assert negated.is_neg()
    assert torch.equal(found, expected)


def test_inference_mode():
    x = torch.randn(7, 30)
    with torch.inference_mode():
        layer = sk.nn.SparseLinear(30, 20, density=0.3)
        first, later = layer(x), layer(x)
        assert torch.equal(first, later)
        layer.weight.zero_()
        assert torch.equal(layer(x), layer.bias.expand(7, 20))


def test_a_pruned_or_parametrized_weight_is_used():
    layer = sk.nn.SparseLinear(30, 20, density=0.3)
    x = torch.randn(7, 30)
    plain_calls(layer, x)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh(), unsafe=True)
    expected = torch.nn.functional.linear(x, layer.to_dense(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
