"""The linear kernels against their torch twins, and those against a dense product."""

import itertools
import os
import random
import subprocess
import sys

import pytest
import torch

from sparsekern import _C, Pattern
from sparsekern.backends import _cpu_linear as cpu
from sparsekern.backends import _reference_linear as reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(0, 5, 3), (1, 1, 1), (1, 70, 130), (3, 13, 9), (17, 64, 64), (33, 100, 70), (130, 65, 200), (300, 40, 129)]


class Problem:
    """A product, its pattern and its operands."""

    def __init__(self, tokens, columns, rows, density, dtype=torch.float32, w_dtype=None, wide_pointers=False):
        mask = torch.rand(rows, columns) < density
        if rows > 2:
            mask[rows // 2] = False  # an empty row
        self.mask = mask
        topology = Pattern.from_mask(mask).tensors()
        if wide_pointers:
            ccol, row, crow, col, perm = topology
            topology = ccol.long(), row, crow.long(), col, perm.long()
        self.topology = topology
        self.x = torch.randn(tokens, columns, dtype=torch.float64).to(dtype)
        self.grad = torch.randn(tokens, rows, dtype=torch.float64).to(dtype)
        self.w = torch.randn(int(mask.sum()), dtype=torch.float64).to(w_dtype or dtype)
        self.bias = torch.randn(rows, dtype=torch.float64).to(w_dtype or dtype)
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32

    def results(self, backend):
        """Every product of the backend, by name."""
        x, grad, w, (ccol, row, *rest) = self.x, self.grad, self.w, self.topology
        dx, dw, dbias = backend.linear_backward(grad, x, w, ccol, row, w.dtype)
        *_, none = backend.linear_backward(grad, x, w, ccol, row, None)
        assert none.shape == (0,)
        return {
            "y": backend.linear(x, w, self.bias, ccol, row, *rest),
            "y without bias": backend.linear(x, w, None, ccol, row, *rest),
            "dx": dx,
            "dw": dw,
            "dbias": dbias,
            "dx alone": backend.linear_input_grad(grad, w, ccol, row),
            "dw alone": backend.linear_weight_grad(grad, x, ccol, row, self.wide),
        }


def assert_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        twin = expected[name]
        assert value.shape == twin.shape, name
        assert value.dtype == twin.dtype, name
        scale = max(1.0, twin.double().abs().max().item()) if twin.numel() else 1.0
        # A NaN fails: the comparison is of what is close, not of what is far.
        assert ((value.double() - twin.double()).abs() <= tolerance * scale).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_their_twins(isa, threads, dtype, shape):
    torch.manual_seed(SHAPES.index(shape))
    for density in (0.0, 0.03, 0.3, 1.0):
        problem = Problem(*shape, density, dtype)
        assert_close(problem.results(cpu), problem.results(reference), TOLERANCE[dtype])


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_twins_equal_the_dense_product(density):
    torch.manual_seed(0)
    problem = Problem(9, 21, 14, density, torch.float64)
    x, grad, mask = problem.x, problem.grad, problem.mask
    dense = torch.zeros(mask.shape, dtype=torch.float64)
    dense.t()[mask.t()] = problem.w
    expected = {
        "y": x @ dense.t() + problem.bias,
        "y without bias": x @ dense.t(),
        "dx": grad @ dense,
        "dw": (grad.t() @ x).t()[mask.t()],
        "dbias": grad.sum(0),
    }
    expected |= {"dx alone": expected["dx"], "dw alone": expected["dw"]}
    assert_close(problem.results(reference), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_values_with_half_activations(isa, dtype):
    torch.manual_seed(1)
    for tokens in (40, 300):
        problem = Problem(tokens, 50, 30, 0.2, dtype, w_dtype=torch.float32)
        actual, expected = problem.results(cpu), problem.results(reference)
        assert_close(actual, expected, TOLERANCE[dtype])
        exact = ("dw", "dw alone", "dbias")  # sums of products in float32: nothing was rounded to half
        assert_close({name: actual[name] for name in exact}, {name: expected[name] for name in exact}, 1e-5)


def test_half_sums_are_kept_in_float32(isa):
    """4096 ones sum to 4096, which a float16 or bfloat16 sum would miss."""
    ccol, row, *rest = Pattern.from_mask(torch.ones(1, 4096, dtype=torch.bool)).tensors()
    for dtype in (torch.bfloat16, torch.float16):
        ones = torch.ones(1, 4096, dtype=dtype)
        y = cpu.linear(ones, ones[0].clone(), None, ccol, row, *rest)
        assert y.item() == 4096
        dw = cpu.linear_weight_grad(torch.ones(4096, 1, dtype=dtype), ones.expand(4096, -1), ccol, row, dtype)
        assert (dw == 4096).all()


def test_special_values_survive(isa):
    """Infinities, NaN, the largest and the smallest numbers pass through an identity unchanged."""
    identity = Pattern.from_mask(torch.eye(8, dtype=torch.bool)).tensors()
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        values = [0.0, -0.0, float("inf"), -float("inf"), info.max, info.tiny, info.smallest_normal / 2, 1.0]
        x = torch.tensor([values], dtype=dtype)
        y = cpu.linear(x, torch.ones(8, dtype=dtype), None, *identity)
        assert torch.equal(y, x), dtype
        nan = cpu.linear(torch.full((1, 8), float("nan"), dtype=dtype), torch.ones(8, dtype=dtype), None, *identity)
        assert nan.isnan().all()


def test_wide_pointers(isa):
    torch.manual_seed(2)
    problem = Problem(20, 33, 47, 0.3, wide_pointers=True)
    assert_close(problem.results(cpu), problem.results(reference), 1e-5)


def test_panels_and_many_tiles(isa, threads):
    """Shapes large enough that the features are cut into panels and the edges are packed."""
    torch.manual_seed(3)
    for tokens, columns, rows, density in ((600, 700, 90, 0.5), (280, 90, 1500, 0.4), (70, 3000, 1400, 0.03)):
        problem = Problem(tokens, columns, rows, density)
        assert_close(problem.results(cpu), problem.results(reference), 1e-5)
    problem = Problem(280, 90, 1500, 0.4, torch.bfloat16)
    assert_close(problem.results(cpu), problem.results(reference), 1e-2)


def test_strided_inputs(isa):
    torch.manual_seed(4)
    problem = Problem(36, 30, 22, 0.3)
    expected = problem.results(reference)
    x, grad = problem.x, problem.grad
    forms = {
        "row stride": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        "transposed": lambda t: t.t().contiguous().t(),
        "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
        "offset": lambda t: torch.cat([t[:1], t])[1:],
    }
    for form in forms.values():
        problem.x, problem.grad = form(x), form(grad)
        assert torch.equal(problem.x, x)
        assert_close(problem.results(cpu), expected, 1e-5)
    problem.x, problem.grad = x[:1].expand(36, -1), grad[:1].expand(36, -1)
    assert_close(problem.results(cpu), problem.results(reference), 1e-5)


def test_random_shapes(isa):
    rng = random.Random(5)
    torch.manual_seed(5)
    for _ in range(60):
        sizes = (rng.randint(0, 90), rng.randint(1, 150), rng.randint(1, 150))
        dtype = rng.choice(DTYPES)
        problem = Problem(*sizes, rng.random() ** 2, dtype)
        assert_close(problem.results(cpu), problem.results(reference), TOLERANCE[dtype])


def test_results_are_bit_equal_from_run_to_run(isa, threads):
    torch.manual_seed(6)
    for shape in ((300, 200, 150), (20, 400, 300)):
        problem = Problem(*shape, 0.2)
        first = problem.results(cpu)
        for _ in range(3):
            again = problem.results(cpu)
            assert all(torch.equal(first[name], again[name]) for name in first)


def test_dw_adds_nothing_of_an_earlier_call(isa):
    """Scratch that an earlier, larger product left behind does not show."""
    torch.manual_seed(7)
    large, small = Problem(300, 200, 150, 0.5), Problem(5, 20, 15, 0.5)
    expected = small.results(reference)
    for problem in itertools.islice(itertools.cycle((large, small)), 4):
        result = problem.results(cpu)
    assert_close(result, expected, 1e-5)


def imported_isa(name):
    """What a new process says of SPARSEKERN_ISA=name: exit code, output, error."""
    command = [sys.executable, "-c", "import sparsekern; print(sparsekern._C.isa())"]
    environment = {**os.environ, "SPARSEKERN_ISA": name}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return result.returncode, result.stdout.strip(), result.stderr


def test_the_environment_chooses_the_instruction_set():
    name = _C.available_isas()[-1]
    assert imported_isa(name)[:2] == (0, name)
    code, _, error = imported_isa("mmx")
    assert code != 0
    assert "SPARSEKERN_ISA is 'mmx'; expected one of" in error


FEW_TOKENS = [1, 2, 8, 9, 16, 17, 32, 33, 64]


def assert_met_again(problem):
    """Many products of the same values have the bits of the first, and values that were written to are seen."""
    x, w, topology = problem.x, problem.w, problem.topology
    first = cpu.linear(x, w, problem.bias, *topology)
    for _ in range(12):
        assert torch.equal(cpu.linear(x, w, problem.bias, *topology), first)
    before = w.clone()
    w.data[7] = 3.0  # torch does not count this write
    changed = cpu.linear(x, w, problem.bias, *topology)
    tolerance = TOLERANCE[x.dtype]
    assert_close({"y": changed}, {"y": reference.linear(x, w, problem.bias, *topology)}, tolerance)
    assert not torch.equal(changed, first)
    w.copy_(before)
    assert torch.equal(cpu.linear(x, w, problem.bias, *topology), first)
    return first


@pytest.mark.parametrize("tokens", FEW_TOKENS)
def test_values_met_again_give_the_same_bits_and_new_ones_are_seen(isa, threads, tokens):
    torch.manual_seed(2)
    assert_met_again(Problem(tokens, 2200, 90, 0.4))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("tokens", [1, 3, 16, 20, 50])
def test_values_met_again_of_other_dtypes(isa, tokens, dtype):
    torch.manual_seed(3)
    problem = Problem(tokens, 700, 70, 0.3, dtype)
    problem.x[:, 0] = 1  # so that a changed value shows after rounding
    first = assert_met_again(problem)
    expected = reference.linear(problem.x, problem.w, problem.bias, *problem.topology)
    assert_close({"y": first}, {"y": expected}, TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [1, 4, 12, 20])
def test_columns_beyond_sixteen_bits(isa, threads, tokens):
    torch.manual_seed(4)
    problem = Problem(tokens, 70000, 21, 0.02)
    first = assert_met_again(problem)
    expected = reference.linear(problem.x, problem.w, problem.bias, *problem.topology)
    assert_close({"y": first}, {"y": expected}, 1e-5)


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_a_product_has_the_same_bits_however_many_tokens_are_kept(isa, tokens):
    """Orders for one token, a vector and more lie side by side; none is taken for another."""
    torch.manual_seed(5)
    problem = Problem(tokens, 900, 130, 0.3)
    first = cpu.linear(problem.x, problem.w, problem.bias, *problem.topology)
    for _ in range(12):
        for count in (1, 5, 16, 33, 64):
            cpu.linear(torch.randn(count, 900), problem.w, problem.bias, *problem.topology)
        assert torch.equal(cpu.linear(problem.x, problem.w, problem.bias, *problem.topology), first)


def test_a_token_has_the_same_bits_on_another_number_of_threads(isa):
    """What is kept for one token is cut for its threads."""
    torch.manual_seed(6)
    problem, before = Problem(1, 600, 203, 0.3), torch.get_num_threads()
    first = cpu.linear(problem.x, problem.w, problem.bias, *problem.topology)
    try:
        for threads in (1, 3, 2, 1):
            torch.set_num_threads(threads)
            for _ in range(12):
                assert torch.equal(cpu.linear(problem.x, problem.w, problem.bias, *problem.topology), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_every_value_negated_is_seen(isa, tokens):
    """A digest without rotation is blind to it: the highest bits of two values undo each other."""
    topology = Pattern.from_mask(torch.ones(64, 64, dtype=torch.bool)).tensors()
    x, w = torch.randn(tokens, 64), torch.randn(4096)
    for _ in range(12):
        first = cpu.linear(x, w, None, *topology)
    w.data.neg_()
    assert torch.equal(cpu.linear(x, w, None, *topology), -first)


def test_every_half_precision_value_passes_unchanged(isa):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    topology = Pattern.from_mask(torch.eye(16, dtype=torch.bool)).tensors()
    for dtype in (torch.bfloat16, torch.float16):
        x = bits.view(dtype).view(-1, 16)
        y = cpu.linear(x, torch.ones(16), None, *topology)
        known = ~x.isnan()
        assert torch.equal(y[known], x[known])  # -0 and 0 are equal, sums begin with 0
        assert y[~known].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_are_rounded_as_torch_rounds(isa, dtype):
    torch.manual_seed(3)
    topology = Pattern.from_mask(torch.eye(32, dtype=torch.bool)).tensors()
    x = (torch.randn(300, 32) * torch.logspace(-12, 4, 300).unsqueeze(1)).to(dtype)
    w = torch.randn(32)
    expected = (x.float() * w).to(dtype)
    assert torch.equal(cpu.linear(x, w, None, *topology), expected)
