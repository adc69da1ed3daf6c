"""Run by test_cuda.py and by test_triton.py, each in its own process: what a GPU backend has to do, whichever it is.

Linear products against their twins, and layers of both kinds: training, autocast, torch's checks, growth.
"""

import gc
import itertools
from contextlib import contextmanager

import pytest
import torch
from gpu_backend import (
    DEVICE,
    FLOATS,
    HALVES,
    NAME,
    TOLERANCE,
    Operands,
    assert_close,
    assert_equal_their_twins,
    backend,
    random_mask,
    step,
)
from no_wait import NoWait

import sparsekern
from sparsekern import Pattern, SparseConv2d, SparseLinear
from sparsekern.backends import kept, reference
from sparsekern.testing import forbid_dense

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory", "large_gpu")

# tokens, columns, rows
SHAPES = [(0, 5, 3), (1, 1, 1), (1, 30, 7), (3, 13, 9), (16, 9, 20), (33, 9, 16), (70, 5, 37), (128, 5, 3)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_their_twins(shape, dtype):
    torch.manual_seed(SHAPES.index(shape))
    tokens, columns, rows = shape
    for density in (0.0, 0.3, 1.0):
        mask = random_mask(rows, columns, density)
        assert_equal_their_twins(Operands(tokens, mask, dtype, torch.float32 if density == 1 else None))


@pytest.mark.parametrize("dtype", FLOATS)
def test_int64_pointers(dtype):
    assert_equal_their_twins(Operands(19, random_mask(11, 14, 0.3), dtype, torch.float32, wide_pointers=True))


@pytest.mark.parametrize("w_dtype", [torch.float32, None])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_products_alone(dtype, w_dtype):
    operands = Operands(19, random_mask(11, 14, 0.3), dtype, w_dtype)
    grad, x, w, (ccol, row, *_) = operands.grad, operands.x, operands.w, operands.topology
    for name, arguments in (
        ("linear_input_grad", (grad, w, ccol, row)),
        ("linear_weight_grad", (grad, x, ccol, row, w.dtype)),
    ):
        value, expected = (getattr(products, name)(*arguments) for products in (backend, reference))
        assert_close(value, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_added_up_in_float32(dtype):
    operands = Operands(200, random_mask(5, 6, 0.6), dtype, torch.float32)
    results, (ccol, row, *_) = operands.results(backend), operands.topology
    columns = torch.repeat_interleave(ccol.long().diff())
    grad, x = operands.grad.double(), operands.x.double()
    assert_close(results["dw"], (grad[:, row.long()] * x[:, columns]).sum(0).float(), 1e-6)
    assert_close(results["dbias"], grad.sum(0).float(), 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_no_rows_or_columns(shape, dtype):
    assert_equal_their_twins(Operands(3, torch.zeros(shape, dtype=torch.bool, device=DEVICE), dtype))


@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_rows_and_columns_of_very_different_lengths(dtype):
    mask = torch.zeros(40, 90, dtype=torch.bool, device=DEVICE)
    mask[7], mask[:, 81], mask[39, 3] = True, True, True
    assert_equal_their_twins(Operands(5, mask, dtype))


def strided(name, tensor):
    """The same values elsewhere in memory."""
    tokens, features = tensor.shape
    if name == "every second feature":
        return torch.stack([tensor, torch.full_like(tensor, float("nan"))], 2).flatten(1)[:, ::2]
    if name == "by feature":
        return tensor.t().contiguous().t()
    if name == "by feature, within others":
        return torch.nn.functional.pad(tensor.t(), (0, 16), value=float("nan"))[:, :tokens].t()
    if name == "by feature, not aligned":
        return torch.cat([tensor.new_full((1,), float("nan")), tensor.t().flatten()])[1:].view(features, tokens).t()
    return tensor[:, :1].expand(tokens, features)


@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize("tokens", [16, 21])
@pytest.mark.parametrize(
    "name",
    ["every second feature", "by feature", "by feature, within others", "by feature, not aligned", "expanded"],
)
def test_strided_operands(name, tokens, dtype):
    operands = Operands(tokens, random_mask(10, 12, 0.4), dtype)
    plain, operands.x = operands.x, strided(name, operands.x)
    operands.w = torch.stack([operands.w, operands.w + 1], 1)[:, 0]
    operands.bias = operands.bias[:1].expand(10)
    assert_equal_their_twins(operands)
    operands.x, operands.grad = plain, strided(name, operands.grad)
    assert_equal_their_twins(operands)


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


@contextmanager
def no_wait():
    """In which the host waiting for the device is an error."""
    with NoWait(DEVICE):
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_the_host_does_not_wait_for_the_device(dtype):
    """Neither in a first product, which works out what is kept of the topology, nor in a second."""
    linear, images = Operands(33, random_mask(11, 14, 0.3), dtype, torch.float32), LAYERS["by pixel"]
    layer, x = images[0]().to(dtype), torch.randn(images[1], device=DEVICE).to(dtype)
    topology, geometry = layer.pattern.tensors(), layer.geometry
    weight, bias = layer.weight.detach(), layer.bias.detach()
    for _ in range(2):
        with no_wait():
            linear.results(backend)
            y = backend.conv2d(x, weight, bias, *topology, *geometry)
            backend.conv2d_backward(y, x, weight, *topology[:2], *geometry, weight.dtype)


@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_nothing_is_kept_of_what_a_cuda_graph_captures(dtype, monkeypatch):
    """A graph that took the layout of one topology would go on with it when the topology has changed."""
    operands = Operands(33, random_mask(11, 14, 0.3), dtype, torch.float32)
    caches = [each for each in gc.get_objects() if type(each) is kept.KeptOnDevice]
    assert caches
    before = [set(cache.entries) for cache in caches]  # of which some may go meanwhile, with other tests' patterns
    monkeypatch.setattr(kept, "is_captured", lambda tensor: True)
    captured = operands.results(backend)
    assert all(cache.entries.keys() <= known for cache, known in zip(caches, before, strict=True))
    monkeypatch.undo()
    results = operands.results(backend)
    assert not all(cache.entries.keys() <= known for cache, known in zip(caches, before, strict=True))
    monkeypatch.setattr(kept, "is_captured", lambda tensor: True)
    monkeypatch.setattr(kept.Kept, "get", None)  # what was kept is not asked for
    again = operands.results(backend)
    assert all(torch.equal(captured[name], results[name]) for name in results)
    assert all(torch.equal(again[name], results[name]) for name in results)


if DEVICE == "cuda":

    @pytest.mark.parametrize("name", ["linear", "by pixel"])
    def test_a_captured_graph_follows_the_topology(name):
        make, shape = LAYERS[name]
        layer, x = make(), torch.randn(shape, device=DEVICE, requires_grad=True)
        other = Pattern.random(layer.matrix_shape, layer.nnz).to(DEVICE)

        def work():
            with sparsekern.backend(NAME):
                y = layer(x)
                return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, layer.weight))]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = work()
        for index, changed in zip(layer.pattern.tensors(), other.tensors(), strict=True):
            index.copy_(changed)
        graph.replay()
        expected = work()
        for value, wanted in zip(found, expected, strict=True):
            assert_close(value, wanted, 1e-5)


@pytest.mark.parametrize("dtype", FLOATS[::2])
def test_results_are_the_same_each_time(dtype):
    operands = Operands(70, random_mask(9, 20, 0.5), dtype)
    first, second = operands.results(backend), operands.results(backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_float64_is_the_references():
    operands = Operands(5, random_mask(9, 12, 0.4), torch.float64)
    expected = operands.results(reference)
    assert all(torch.equal(value, expected[name]) for name, value in operands.results(backend).items())


# Layers, and the shape of what they are given.
LAYERS = {
    "linear": (lambda: SparseLinear(20, 13, density=0.2, device=DEVICE), (2, 3, 20)),
    "planes": (lambda: SparseConv2d(4, 4, 3, padding=1, density=0.2, device=DEVICE), (2, 4, 3, 5)),
    "by pixel": (
        lambda: SparseConv2d(4, 4, 3, stride=2, padding=1, groups=2, density=0.2, device=DEVICE),
        (17, 4, 3, 3),
    ),
}


# In bfloat16 twice through rounding.
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [*((name, torch.float32, 1e-5) for name in LAYERS), ("linear", torch.bfloat16, 3e-2)],
)
def test_layers_train_as_with_other_backends(name, dtype, tolerance):
    torch.manual_seed(3)
    make, shape = LAYERS[name]
    layer = make()
    images, other = torch.randn(shape, device=DEVICE).to(dtype), Pattern.random(layer.matrix_shape, 20).to(DEVICE)
    twins = step(layer, "reference", images, other)
    for value, expected in zip(step(layer, NAME, images, other), twins, strict=True):
        assert_close(value, expected, tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape, device=DEVICE, requires_grad=True)
    with sparsekern.backend(NAME), torch.autocast(DEVICE, torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    with sparsekern.backend("reference"):
        assert_close(y.float(), layer(x.detach()), 2e-2)


@pytest.mark.parametrize(
    ("name", "dtype"), [*itertools.product(["linear"], FLOATS[:2]), ("planes", HALVES[0]), ("by pixel", FLOATS[0])]
)
def test_operators_under_torchs_checks(name, dtype):
    make, shape = LAYERS[name]
    layer = make()
    x = torch.randn(shape, device=DEVICE).flatten(0, -2 if name == "linear" else 0)
    grad = torch.randn_like(layer(x).detach()).to(dtype)
    x, w, bias = (tensor.detach().to(dtype) for tensor in (x, layer.weight, layer.bias))
    ccol, row, *by_row = layer.pattern.tensors()
    operators = torch.ops.sparsekern
    if name == "linear":
        geometry = ()
        calls = {
            operators.linear: (x.requires_grad_(), w, bias, ccol, row, *by_row),
            operators.linear_backward: (grad, x.detach(), w, ccol, row),
        }
    else:
        geometry = layer.geometry
        calls = {
            operators.conv2d: (x.requires_grad_(), w, bias, ccol, row, *by_row),
            operators.conv2d_backward: (grad, x.detach(), w, ccol, row),
            operators.conv2d_input_grad: (grad, w, ccol, row, x.shape[2:]),
            operators.conv2d_weight_grad: (grad, x.detach(), ccol, row),
        }
    with sparsekern.backend(NAME):
        for operator, arguments in calls.items():
            torch.library.opcheck(operator, (*arguments, *geometry), test_utils=["test_schema", "test_faketensor"])


# Large enough for what the backend keeps beside edges and activations: layers, batch, and images' sides.
def linear_model():
    tokens, columns, hidden, rows = {"cuda": (37, 90, 150, 120), "triton": (7, 40, 50, 30)}[NAME]
    options = {"density": 0.05, "device": DEVICE}
    model = torch.nn.Sequential(SparseLinear(columns, hidden, **options), torch.nn.ReLU())
    return model.append(SparseLinear(hidden, rows, **options)), (tokens, columns), (tokens, rows)


def conv_model(batch, stride):
    channels, hidden, out = {"cuda": (20, 30, 40), "triton": (3, 11, 7)}[NAME]
    options = {"density": 0.05, "device": DEVICE, "padding": 1}
    model = torch.nn.Sequential(SparseConv2d(channels, hidden, 3, stride=stride, **options), torch.nn.ReLU())
    model.append(SparseConv2d(hidden, out, 3, **options))
    return model, (batch, channels, 2 * stride, 2 * stride), (batch, out, 2, 2)


MANY_IMAGES = {"cuda": 9, "triton": 17}[NAME]  # rounded up to 16, to 32
MODELS = {"linear": linear_model, "planes": lambda: conv_model(3, 1), "by pixel": lambda: conv_model(MANY_IMAGES, 2)}


@pytest.mark.parametrize(
    ("name", "halves"), [("linear", False), ("linear", True), ("planes", False), ("by pixel", True)]
)
def test_training_with_growth_makes_nothing_dense(name, halves):
    torch.use_deterministic_algorithms(False)  # torch's operators on a GPU need not all have a form of that kind
    torch.manual_seed(0)
    model, shape, target_shape = MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    growth = sparsekern.GSE(model, optimizer, sampler="grabo", interval=1, end=10)
    before = model[0].row_indices.clone(), model[2].row_indices.clone()
    losses = []
    x, target = torch.randn(shape, device=DEVICE), torch.randn(target_shape, device=DEVICE)
    with sparsekern.backend(NAME), forbid_dense(model, allowance=0.5 if NAME == "triton" else 1.0):
        for _ in range(2):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=halves):
                loss = (model(x).float() - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            growth.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(map(torch.equal, before, (model[0].row_indices, model[2].row_indices)))


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_chosen(name):
    make, _ = LAYERS[name]
    layer = make()
    with sparsekern.backend(NAME):
        assert sparsekern.backend_of(layer) == sparsekern.backend_of(layer.bfloat16()) == NAME
        assert sparsekern.backend_of(torch.empty(3, dtype=torch.float16, device=DEVICE)) == NAME
        assert sparsekern.backend_of(layer.double()) == "reference"
