"""Batch norm with residual and ReLU: the kernels against their twins, those against torch, the module in training."""

import copy
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.backends import cpu, reference
from sparsekern.nn import BatchNorm2d
from sparsekern.ops.batch_norm import batch_norm

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
EPS = 1e-5
# Planes of less than a vector, of odd sizes and of whole vectors; one channel, more than a block, not a multiple of it.
SHAPES = [
    (0, 3, 4, 4),
    (4, 3, 0, 4),
    (2, 1, 1, 1),
    (5, 70, 1, 1),
    (3, 130, 2, 3),
    (2, 5, 7, 7),
    (7, 9, 4, 4),
    (1, 4, 5, 13),
    (4, 67, 8, 8),
    (3, 2, 33, 31),
    (2, 3, 64, 64),
]


class Problem:
    """Images, a residual, parameters and an output gradient."""

    def __init__(self, shape, dtype=torch.float32, affine=True):
        self.x, self.residual, self.grad = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        channels = shape[1]
        self.weight, self.bias = (torch.randn(channels, dtype=self.wide) if affine else None for _ in range(2))
        self.mean, self.var = torch.randn(channels, dtype=self.wide), torch.rand(channels, dtype=self.wide) + 0.1

    def results(self, backend):
        """Everything that the backend computes, by name."""
        results = {}
        x, affine = self.x, (self.weight, self.bias)
        for relu, residual in itertools.product((False, True), (None, self.residual)):
            name = f"relu={relu} residual={residual is not None} "
            y, mean, var = backend.batch_norm(x, residual, *affine, EPS, relu)
            given = backend.batch_norm_inference(x, residual, *affine, self.mean, self.var, EPS, relu)
            results |= {name + "y": y, name + "mean": mean, name + "var": var, name + "y inference": given}
            for batch_statistics in (False, True):
                # A result of some other origin tells where the ReLU let pass, so that no rounding decides it.
                passed = None if residual is None else self.residual
                gradients = backend.batch_norm_backward(
                    self.grad, x, passed, *affine, self.mean, self.var, EPS, relu, batch_statistics, True, True
                )
                kinds = ("dx", "dresidual", "dweight", "dbias")
                results |= {f"{name}{kind} {batch_statistics}": g for kind, g in zip(kinds, gradients, strict=True)}
        return results

    def check(self):
        expected = self.results(reference)
        for name, value in self.results(cpu).items():
            twin = expected[name]
            assert value.shape == twin.shape, name
            assert value.dtype == twin.dtype, name
            assert value.stride() == twin.stride(), name
            tolerance = TOLERANCE[self.wide if value.dim() == 1 else self.x.dtype]
            if self.x.dtype in (torch.bfloat16, torch.float16) and value.dim() == 1:
                tolerance = 1e-4
            scale = max(1.0, twin.double().abs().max().item()) if twin.numel() else 1.0
            # A NaN fails: the comparison is of what is close, not of what is far.
            assert ((value.double() - twin.double()).abs() <= tolerance * scale).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_their_twins(isa, threads, dtype, shape):
    torch.manual_seed(SHAPES.index(shape))
    Problem(shape, dtype).check()


def test_without_affine_parameters(isa):
    torch.manual_seed(1)
    Problem((3, 5, 6, 6), affine=False).check()


def test_random_shapes(isa):
    rng = random.Random(2)
    torch.manual_seed(2)
    for _ in range(40):
        shape = rng.randint(1, 9), rng.randint(1, 90), rng.randint(1, 20), rng.randint(1, 20)
        Problem(shape, rng.choice(DTYPES)).check()


def test_large_results_pass_the_caches(isa):
    """Sizes from which results are written past them, where planes are whole cache lines and where they are not."""
    torch.manual_seed(3)
    for size in ((33, 32), (33, 31)):
        Problem((70, 16, *size)).check()


def make_module(cls, channels, **options):
    module = cls(channels, **options)
    if module.affine:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias)
    return module


OPTIONS = [
    dict(),
    dict(momentum=None),
    dict(momentum=0.37, eps=1e-2),
    dict(affine=False),
    dict(track_running_stats=False),
    dict(affine=False, track_running_stats=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_module_trains_as_torchs(options, dtype, relu, with_residual):
    torch.manual_seed(0)
    twin = make_module(nn.BatchNorm2d, 6, dtype=dtype, **options)
    mine = BatchNorm2d(6, dtype=dtype, activation="relu" if relu else None, **options)
    mine.load_state_dict(twin.state_dict())
    tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=1e-12, rtol=1e-12)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (mine, twin)] if twin.affine else []
    for step in range(5):
        x, residual, grad = (torch.randn(4, 6, 5, 5, dtype=dtype) * 3 + step for _ in range(3))
        mine_x, mine_residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
        x.requires_grad_(), residual.requires_grad_()
        y = mine(mine_x, mine_residual if with_residual else None)
        expected = twin(x) + residual if with_residual else twin(x)
        expected = F.relu(expected) if relu else expected
        torch.testing.assert_close(y, expected, **tolerance)
        y.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(mine_x.grad, x.grad, **tolerance)
        if with_residual:
            torch.testing.assert_close(mine_residual.grad, residual.grad, **tolerance)
        for a, b in zip(mine.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=100 * tolerance["atol"], rtol=tolerance["rtol"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value, **tolerance)
    mine.eval(), twin.eval()
    x = torch.randn(3, 6, 4, 4, dtype=dtype, requires_grad=True)
    mine_x = x.detach().clone().requires_grad_()
    y, expected = mine(mine_x), F.relu(twin(x)) if relu else twin(x)
    torch.testing.assert_close(y, expected, **tolerance)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(mine_x.grad, x.grad, **tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_state_dict_and_repr_are_torchs(options):
    mine, twin = BatchNorm2d(4, **options), nn.BatchNorm2d(4, **options)
    assert list(mine.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(mine.state_dict())
    assert repr(mine) == repr(twin)
    assert "activation='relu'" in repr(BatchNorm2d(4, activation="relu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_images(dtype):
    torch.manual_seed(0)
    module = make_module(BatchNorm2d, 5, activation="relu")
    x, residual = torch.randn(2, 4, 5, 6, 6).to(dtype).requires_grad_()
    y = module(x, residual)
    assert y.dtype == dtype
    assert module.running_mean.dtype == torch.float32
    exact = F.batch_norm(x.float(), None, None, module.weight, module.bias, training=True) + residual.float()
    torch.testing.assert_close(y.float(), exact.relu(), atol=2e-2, rtol=2e-2)
    y.sum().backward()
    assert module.weight.grad.dtype == torch.float32
    whole = make_module(BatchNorm2d, 5).to(dtype)  # parameters and statistics are half, too
    assert whole(x.detach()).dtype == dtype
    assert whole.running_mean.dtype == dtype
    whole(x).sum().backward()
    assert whole.weight.grad.dtype == dtype


def test_residual_of_another_dtype_widens_as_in_torch():
    module = make_module(BatchNorm2d, 3, activation="relu")
    x, residual = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16), torch.randn(2, 3, 4, 4)
    y = module(x, residual)
    assert y.dtype == torch.float32
    expected = F.batch_norm(x, None, None, module.weight, module.bias, training=True) + residual
    torch.testing.assert_close(y, expected.relu(), atol=2e-2, rtol=2e-2)


def test_statistics_far_from_zero_are_exact(isa):
    """A mean of 1000 deviations, and a first element far from the others, from which differences are taken."""
    torch.manual_seed(0)
    x = torch.randn(8, 2, 40, 40) * 1e-2 + 10
    x[0, 1, 0, 0] = 1e4
    _, mean, var = cpu.batch_norm(x, None, None, None, EPS, False)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, atol=0, rtol=1e-7)
    torch.testing.assert_close(var.double(), exact_var, atol=0, rtol=1e-6)


def test_not_a_number_reaches_its_channel_only(isa):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5)
    x[1, 2, 3, 3] = torch.nan
    y, _, var = cpu.batch_norm(x, None, None, None, EPS, True)
    assert y[:, 2].isnan().all()
    assert y[:, [0, 1, 3]].isfinite().all()
    assert var.isnan().tolist() == [False, False, True, False]


def layouts(t):
    yield t.contiguous(memory_format=torch.channels_last)
    yield t.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)
    yield torch.cat([t, t], 3)[..., : t.shape[3]]
    yield t[..., :1].expand_as(t)


@pytest.mark.parametrize("layout", range(4))
def test_inputs_of_any_strides(isa, layout):
    torch.manual_seed(0)
    problem = Problem((3, 5, 6, 7))
    for name in ("x", "residual", "grad"):
        strided = next(itertools.islice(layouts(getattr(problem, name)), layout, None))
        setattr(problem, name, strided)
    problem.check()
    plain = copy.copy(problem)
    plain.x, plain.residual, plain.grad = (t.contiguous() for t in (problem.x, problem.residual, problem.grad))
    expected = plain.results(cpu)
    for name, value in problem.results(cpu).items():
        assert torch.equal(value, expected[name]), name


def test_channels_last_stays():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = BatchNorm2d(3)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_same_bits_for_any_number_of_threads(isa):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    problem = Problem((6, 37, 9, 9))
    torch.set_num_threads(1)
    first = problem.results(cpu)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        for name, value in problem.results(cpu).items():
            assert torch.equal(value, first[name]), name
    torch.set_num_threads(before)


def test_the_mask_computed_again_is_forwards(isa):
    """Where forward gave exactly zero, backward passes nothing, though it recomputes the sign from x."""
    torch.manual_seed(0)
    problem = Problem((16, 8, 24, 24))
    y, mean, var = cpu.batch_norm(problem.x, None, problem.weight, problem.bias, EPS, True)
    ones = torch.ones_like(y)
    *_, dbias = cpu.batch_norm_backward(
        ones, problem.x, None, problem.weight, problem.bias, mean, var, EPS, True, True, False, False
    )
    assert torch.equal(dbias, (y > 0).sum((0, 2, 3)).float())


def test_unwanted_gradients_are_not_made():
    problem = Problem((2, 3, 4, 4))
    affine = (problem.weight, problem.bias, problem.mean, problem.var, EPS, True, True)
    for need_x, need_residual in itertools.product((False, True), repeat=2):
        dx, dresidual, *_ = cpu.batch_norm_backward(
            problem.grad, problem.x, problem.residual, *affine, need_x, need_residual
        )
        assert dx.numel() == need_x * problem.x.numel()
        assert dresidual.numel() == need_residual * problem.x.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(dtype, last):
    problem = Problem((3, 4, 5, 5), dtype)
    x, residual, grad = problem.x, problem.residual, problem.grad
    if last:
        x, residual, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual, grad))
    affine, statistics = (problem.weight, problem.bias), (problem.mean, problem.var)
    ops = torch.ops.sparsekern
    for relu, extra in ((False, None), (True, residual)):
        torch.library.opcheck(ops.batch_norm, (x, extra, *affine, EPS, relu))
        torch.library.opcheck(ops.batch_norm, (x, extra, None, None, EPS, relu))
        torch.library.opcheck(ops.batch_norm_inference, (x, extra, *affine, *statistics, EPS, relu))
        for need in (False, True):
            arguments = (grad, x, extra, *affine, *statistics, EPS, relu, True, need, not need)
            torch.library.opcheck(ops.batch_norm_backward, arguments)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_derivatives(relu, given):
    torch.manual_seed(0)
    problem = Problem((2, 3, 2, 3), torch.float64)
    statistics = (problem.mean, problem.var) if given else None
    tensors = [t.requires_grad_() for t in (problem.x, problem.residual, problem.weight, problem.bias)]

    def whole(x, residual, weight, bias):
        return batch_norm(x, residual, weight, bias, EPS, relu, statistics)[0]

    def alone(x, weight):
        return batch_norm(x, None, weight, None, EPS, relu, statistics)[0]

    for function, operands in ((whole, tensors), (alone, (tensors[0], tensors[2]))):
        assert torch.autograd.gradcheck(function, operands)
        assert torch.autograd.gradgradcheck(function, operands)


def test_frozen_operands_get_no_gradient():
    module = make_module(BatchNorm2d, 3, activation="relu")
    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    module.weight.requires_grad_(False)
    module(x, residual).sum().backward()
    assert x.grad is None
    assert module.weight.grad is None
    assert residual.grad is not None
    assert module.bias.grad is not None


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    torch.manual_seed(0)
    net = nn.ModuleList([make_module(BatchNorm2d, 4, activation="relu"), make_module(BatchNorm2d, 4)])
    twin = copy.deepcopy(net)

    def run(modules, x):
        return modules[1](modules[0](x), x)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for batch in (4, 4, 7):
        x = torch.randn(batch, 4, 5, 5)
        compiled(net, x).square().sum().backward()
        run(twin, x).square().sum().backward()
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    for mine, other in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def test_empty_batches_leave_the_running_statistics():
    mine, twin = BatchNorm2d(3), nn.BatchNorm2d(3)
    for module in (mine, twin):
        assert module(torch.randn(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    for name, value in twin.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name


def test_refusals_are_torchs():
    for cls in (nn.BatchNorm2d, BatchNorm2d):
        module = cls(3)
        with pytest.raises(ValueError, match="expected 4D input"):
            module(torch.randn(3, 4))
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            module(torch.randn(1, 3, 1, 1))
        with pytest.raises(ValueError, match="eps must be positive"):
            cls(3, eps=0.0)(torch.randn(2, 3, 4, 4))
        assert module.eval()(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_refusals_name_the_argument():
    module = BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"activation is 'gelu'; expected None or 'relu'"):
        BatchNorm2d(3, activation="gelu")
    with pytest.raises(ValueError, match=r"residual has shape \(2, 3, 4, 1\); expected the input's, \(2, 3, 4, 4\)"):
        module(x, x[..., :1])
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); expected \(5,\)"):
        module(torch.randn(2, 5, 4, 4))
    with pytest.raises(TypeError, match=r"input has dtype torch\.int64"):
        module(torch.ones(2, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"weight has dtype torch\.float32; with input of dtype torch\.float64"):
        module(x.double())
    with pytest.raises(ValueError, match="weight is on meta and the input on cpu"):
        BatchNorm2d(3, device="meta")(x)
