"""Attention: the kernels against their twins, those against torch's, derivatives and layouts."""

import random

import pytest
import torch
import torch.nn.functional as F

from sparsekern.backends import cpu, reference
from sparsekern.backends._reference_attention import log_sums as exact_log_sums
from sparsekern.ops.attention import attention

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# Sequences, tokens, heads, size of a head.
SHAPES = [
    (0, 3, 2, 4),
    (2, 0, 2, 4),
    (1, 1, 1, 1),
    (2, 5, 3, 7),
    (3, 16, 2, 16),
    (1, 17, 4, 33),
    (2, 65, 2, 64),
    (1, 100, 1, 90),
]


def problem(shape, dtype=torch.float32, scale=1.0):
    sequences, tokens, heads, size = shape
    qkv = torch.randn(sequences, tokens, 3 * heads * size, dtype=torch.float64) * scale
    grad = torch.randn(sequences, tokens, heads * size, dtype=torch.float64)
    return qkv.to(dtype), grad.to(dtype), heads


def results(backend, qkv, grad, heads):
    out, log_sums = backend.attention(qkv, heads)
    exact = exact_log_sums(qkv, heads)
    return {"out": out, "log_sums": log_sums, "grad": backend.attention_backward(grad, qkv, exact, heads)}


def check(qkv, grad, heads, slack=1):
    expected = results(reference, qkv, grad, heads)
    for name, value in results(cpu, qkv, grad, heads).items():
        twin = expected[name]
        assert value.shape == twin.shape, name
        assert value.dtype == twin.dtype, name
        assert value.is_contiguous(), name
        tolerance = slack * TOLERANCE[twin.dtype]
        scale = max(1.0, twin.double().abs().max().item()) if twin.numel() else 1.0
        # A NaN fails: the comparison is of what is close, not of what is far.
        assert ((value.double() - twin.double()).abs() <= tolerance * scale).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_their_twins(isa, threads, dtype, shape):
    torch.manual_seed(SHAPES.index(shape))
    check(*problem(shape, dtype))


def test_random_shapes(isa):
    rng = random.Random(0)
    torch.manual_seed(0)
    for _ in range(40):
        shape = rng.randint(1, 3), rng.randint(1, 90), rng.randint(1, 4), rng.randint(1, 70)
        check(*problem(shape, rng.choice(DTYPES)))


def test_queries_in_blocks(isa):
    """Sequences so long that the weights of all queries at once do not fit the caches."""
    torch.manual_seed(1)
    check(*problem((1, 1100, 1, 20)))


def test_twins_are_torchs():
    torch.manual_seed(2)
    qkv, grad, heads = problem((2, 9, 3, 5), torch.float64)
    qkv.requires_grad_()
    parts = qkv.view(2, 9, 3, heads, 5).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(2, 9, -1)
    (expected,) = torch.autograd.grad(out, qkv, grad)
    mine = results(reference, qkv.detach(), grad, heads)
    torch.testing.assert_close(mine["out"], out.detach())
    torch.testing.assert_close(mine["grad"], expected)


def test_large_scores(isa):
    """Scores far apart: weights of exactly one and zero, and sums whose exponentials would overflow."""
    torch.manual_seed(3)
    check(*problem((2, 20, 2, 16), torch.float64, scale=30.0), slack=100)
    check(*problem((2, 20, 2, 16), scale=8.0), slack=100)  # rounding the scores moves their exponentials
    qkv, grad, heads = problem((1, 20, 1, 16), scale=0.1)
    qkv[..., :16] -= 10.0  # all scores far below zero, where the padding's would be the highest
    qkv[..., 16:32] += 10.0
    check(qkv, grad, heads, slack=10)


def test_not_a_number_reaches_its_sequence_only(isa):
    torch.manual_seed(4)
    qkv, _, heads = problem((3, 10, 2, 8))
    qkv[1, 4, 3] = torch.nan
    out, _ = cpu.attention(qkv, heads)
    assert out[1, 4, :8].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_inputs_of_any_strides(isa):
    torch.manual_seed(5)
    qkv, grad, heads = problem((3, 6, 2, 4))
    expected = results(cpu, qkv, grad, heads)
    forms = [
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.cat([t, t], 2)[..., : t.shape[2]],
        lambda t: t.repeat_interleave(2, 1)[:, ::2],
    ]
    for form in forms:
        for name, value in results(cpu, form(qkv), form(grad), heads).items():
            assert torch.equal(value, expected[name]), name


def test_same_bits_for_any_number_of_threads(isa):
    torch.manual_seed(6)
    before = torch.get_num_threads()
    arguments = problem((5, 21, 3, 10))
    torch.set_num_threads(1)
    first = results(cpu, *arguments)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for name, value in results(cpu, *arguments).items():
            assert torch.equal(value, first[name]), name
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    qkv, grad, heads = problem((2, 5, 3, 4), dtype)
    log_sums = exact_log_sums(qkv, heads)
    for tensor in (qkv, qkv.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.library.opcheck(torch.ops.sparsekern.attention, (tensor, heads))
        torch.library.opcheck(torch.ops.sparsekern.attention_backward, (grad, tensor, log_sums, heads))


def test_derivatives():
    torch.manual_seed(7)
    qkv, _, heads = problem((2, 3, 2, 2), torch.float64)
    qkv.requires_grad_()
    assert torch.autograd.gradcheck(lambda qkv: attention(qkv, heads), qkv)
    assert torch.autograd.gradgradcheck(lambda qkv: attention(qkv, heads), qkv)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    torch._dynamo.reset()
    compiled = torch.compile(lambda qkv: attention(qkv, 2), fullgraph=True, backend=backend)
    for batch in (4, 4, 7):
        qkv = torch.randn(batch, 5, 12, requires_grad=True)
        (mine,) = torch.autograd.grad(compiled(qkv).square().sum(), qkv)
        (expected,) = torch.autograd.grad(attention(qkv, 2).square().sum(), qkv)
        torch.testing.assert_close(mine, expected)


def test_refusals():
    with pytest.raises(ValueError, match=r"qkv has shape \(2, 5, 10\).*a positive multiple of 3 \* heads, 6"):
        attention(torch.randn(2, 5, 10), 2)
    with pytest.raises(ValueError, match="heads is 0; expected at least 1"):
        attention(torch.randn(2, 5, 12), 0)
    with pytest.raises(TypeError, match=r"qkv has dtype torch\.int64"):
        attention(torch.ones(2, 5, 12, dtype=torch.int64), 2)
    qkv, grad, heads = problem((2, 5, 1, 4))
    with pytest.raises(ValueError, match=r"grad has shape \(2, 4, 4\).*expected \(2, 5, 4\)"):
        torch.ops.sparsekern.attention_backward(grad[:, 1:], qkv, exact_log_sums(qkv, heads), heads)
