"""GELU: the kernels against their twins, those against torch, derivatives and layouts."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.backends import cpu, reference
from sparsekern.nn import GELU
from sparsekern.ops.gelu import gelu

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of the larger of 1 and the result.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 8e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
FORMS = pytest.mark.parametrize("tanh", [False, True])


def points(dtype):
    """All of the curve, densely, and what lies far outside."""
    far = torch.tensor([-1e30, -100.0, -13.1, -0.0, 0.0, 1e-30, 13.1, 100.0, 1e30], dtype=torch.float64)
    if dtype == torch.float16:
        far = far.clamp(-6e4, 6e4)
    return torch.cat([torch.linspace(-14, 14, 40001, dtype=torch.float64), far]).to(dtype)


def assert_near(result, expected, dtype):
    assert result.dtype == dtype
    error = (result.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)
    assert (error <= TOLERANCE[dtype]).all(), f"{error.max():.2e}"  # a NaN fails


@FORMS
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_their_twins(isa, dtype, tanh):
    torch.manual_seed(0)
    x = points(dtype)
    exact = x.double()
    grad = torch.randn_like(x)
    assert_near(cpu.gelu(x, tanh), reference.gelu(exact, tanh), dtype)
    assert_near(cpu.gelu_backward(grad, x, tanh), reference.gelu_backward(grad.double(), exact, tanh), dtype)


@FORMS
def test_twins_are_torchs(tanh):
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64, requires_grad=True)
    y = F.gelu(x, approximate="tanh" if tanh else "none")
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(reference.gelu(x, tanh), y, atol=1e-14, rtol=0)
    torch.testing.assert_close(reference.gelu_backward(torch.ones_like(x), x, tanh), dx, atol=1e-14, rtol=0)


def test_the_left_tail_keeps_its_relative_accuracy(isa):
    x = torch.linspace(-12.5, 0, 30001)
    x = x[x < 0]
    exact = reference.gelu(x.double(), False)
    error = (cpu.gelu(x, False).double() - exact).abs() / exact.abs()
    # Without a fused multiply-add, what squaring x rounds off is lost; `make sanitize` builds without.
    fused = isa != "portable" and "SPARSEKERN_SANITIZE" not in os.environ
    assert error.max() <= (1e-6 if fused else 1e-5)


@FORMS
def test_results_are_no_further_off_than_torchs(isa, tanh):
    torch.manual_seed(0)
    x = torch.randn(100_000) * 3
    exact = reference.gelu(x.double(), tanh)
    mine = (cpu.gelu(x, tanh).double() - exact).abs().max()
    torchs = (F.gelu(x, approximate="tanh" if tanh else "none").double() - exact).abs().max()
    assert mine <= 2 * torchs


@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17, 64, 1000, 8192, 20_011, 1_100_003])
def test_sizes(isa, threads, size):
    torch.manual_seed(size)
    for dtype in DTYPES:
        x, grad = torch.randn(2, size).to(dtype)
        assert_near(cpu.gelu(x, False), reference.gelu(x.double(), False), dtype)
        assert_near(cpu.gelu_backward(grad, x, False), reference.gelu_backward(grad.double(), x.double(), False), dtype)


def test_same_bits_for_any_number_of_threads(isa):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    x = torch.randn(1_200_001)
    torch.set_num_threads(1)
    first = cpu.gelu(x, False)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(cpu.gelu(x, False), first)
    torch.set_num_threads(before)


def test_not_a_number_stays(isa):
    for dtype in DTYPES:
        x = torch.full((21,), torch.nan, dtype=dtype)
        for tanh in (False, True):
            assert cpu.gelu(x, tanh).isnan().all()
            assert cpu.gelu_backward(x, x, tanh).isnan().all()


def test_inputs_of_any_strides(isa):
    torch.manual_seed(0)
    x, grad = torch.randn(5, 6, 14), torch.randn(5, 6, 14)
    forms = [lambda t: t.transpose(0, 2), lambda t: t[:, ::2], lambda t: t[..., :1].expand_as(t), lambda t: t[1:, 2:]]
    for form in forms:
        for other in (form, lambda t, form=form: form(t).contiguous()):
            y, dx = cpu.gelu(form(x), False), cpu.gelu_backward(other(grad), form(x), False)
            assert torch.equal(y, cpu.gelu(form(x).contiguous(), False))
            assert torch.equal(dx, cpu.gelu_backward(form(grad).contiguous(), form(x).contiguous(), False))
    assert cpu.gelu(x.transpose(0, 2), False).stride() == x.transpose(0, 2).stride()


@FORMS
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, tanh):
    x, grad = torch.randn(3, 5).to(dtype), torch.randn(3, 5).to(dtype)
    torch.library.opcheck(torch.ops.sparsekern.gelu, (x, tanh))
    torch.library.opcheck(torch.ops.sparsekern.gelu, (x.t(), tanh))
    torch.library.opcheck(torch.ops.sparsekern.gelu_backward, (grad, x, tanh))


@FORMS
def test_derivatives(tanh):
    x = torch.linspace(-6, 6, 23, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gelu(x, tanh), x)
    assert torch.autograd.gradgradcheck(lambda x: gelu(x, tanh), x)


def test_functional_transforms():
    x = torch.randn(7, dtype=torch.float64)
    dx = torch.func.grad(lambda x: gelu(x).square().sum())(x)
    expected = torch.func.grad(lambda x: F.gelu(x).square().sum())(x)
    torch.testing.assert_close(dx, expected)


@FORMS
def test_module_is_torchs(tanh):
    torch.manual_seed(0)
    approximate = "tanh" if tanh else "none"
    mine, twin = GELU(approximate), nn.GELU(approximate)
    assert repr(mine) == repr(twin)
    assert not mine.state_dict()
    x = torch.randn(4, 5, 6, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = mine(x), twin(other)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    with torch.no_grad():
        assert torch.equal(mine(x), y)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    torch._dynamo.reset()
    compiled = torch.compile(GELU(), fullgraph=True, backend=backend)
    for batch in (4, 4, 7):
        x = torch.randn(batch, 9, requires_grad=True)
        (dx,) = torch.autograd.grad(compiled(x).square().sum(), x)
        (expected,) = torch.autograd.grad(gelu(x).square().sum(), x)
        torch.testing.assert_close(dx, expected)


def test_refusals():
    with pytest.raises(ValueError, match=r"approximate is 'sigmoid'; expected 'none' or 'tanh'"):
        GELU("sigmoid")
    with pytest.raises(TypeError, match=r"input has dtype torch\.int64"):
        GELU()(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"grad has shape \(2,\).*expected the input's, \(3,\)"):
        torch.ops.sparsekern.gelu_backward(torch.ones(2), torch.ones(3), False)
