"""Errors where devices are mixed, missing or full: a message that says what is wrong, and nothing half done."""

import copy
from types import SimpleNamespace

import pytest
import torch

import sparsekern
from sparsekern import Pattern, SparseConv2d, SparseLinear
from sparsekern.models import make_model

HAS_GPU = torch.cuda.is_available()
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")]


def layer_and_input(name, device="cpu"):
    if name == "linear":
        return SparseLinear(6, 5, density=0.5, device=device), torch.rand(3, 6, device=device)
    return SparseConv2d(4, 5, 3, density=0.5, device=device), torch.rand(2, 4, 6, 6, device=device)


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("other", ["meta", pytest.param("cuda", marks=on_gpu)])
def test_tensors_on_two_devices(name, other):
    layer, x = layer_and_input(name)
    with pytest.raises(ValueError, match=rf"weight is on cpu and the input on {other}.*expected one device"):
        layer(x.to(other))
    moved = copy.deepcopy(layer).to(other)
    with pytest.raises(ValueError, match=rf"weight is on {other}.* and the input on cpu; expected one device"):
        moved(x)
    layer.bias = torch.nn.Parameter(layer.bias.detach().to(other))
    with pytest.raises(ValueError, match=rf"bias is on {other}.* and the input on cpu"):
        layer(x)


@pytest.mark.parametrize("other", ["meta", pytest.param("cuda", marks=on_gpu)])
def test_a_topology_on_another_device_than_its_values(other):
    layer, x = layer_and_input("linear")
    layer.row_indices = layer.row_indices.to(other)
    with pytest.raises(ValueError, match=rf"row_indices is on {other}.* and the input on cpu; expected one device"):
        layer(x)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_no_driver():
    """torch says that there is none, before a layer is made or a model is changed."""
    missing = r"(?i)cuda|nvidia"
    with pytest.raises((RuntimeError, AssertionError), match=missing):
        SparseLinear(6, 5, density=0.5, device="cuda")
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    before = copy.deepcopy(model)
    sparsekern.sparsify(model, 0.5)
    values = model[0].weight.detach().clone()
    with pytest.raises((RuntimeError, AssertionError), match=missing):
        model.to("cuda")
    assert model[0].weight.is_cpu
    assert torch.equal(model[0].weight, values)
    model[0].pattern.validate()
    assert isinstance(before[0], torch.nn.Linear)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_the_cpu_backend_refuses_a_gpus_tensors(device):
    layer, x = layer_and_input("linear", device)
    with (
        sparsekern.backend("cpu"),
        pytest.raises(ValueError, match="'cpu' cannot take tensors on cuda; expected 'auto'"),
    ):
        layer(x)
    layer(x)


def trained(device):
    """A layer, its optimizer and a growth after a step, with a batch that has been through."""
    layer = torch.nn.Sequential(SparseLinear(64, 48, density=0.2, device=device))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    growth = sparsekern.GSE(layer, optimizer, sampler="grabo", interval=1, end=10)
    x = torch.rand(16, 64, device=device)
    step(layer, optimizer, x)
    growth.step()
    return layer, optimizer, growth, x


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def state(model, optimizer):
    return copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


@pytest.fixture
def memory():
    """`fill` has torch refuse any further memory of the GPU, as one that is full does."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    blocks = []

    def fill():
        """Until `relieve`."""
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (2 << 20)) / total)
        for size in (1 << 20, 1 << 10, 512):
            try:
                while True:
                    blocks.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                continue

    def relieve():
        blocks.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)

    yield SimpleNamespace(fill=fill, relieve=relieve)
    relieve()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_a_step_that_runs_out_of_memory_changes_nothing(device, memory):
    model, optimizer, growth, x = trained(device)
    before = state(model, optimizer)
    larger = torch.rand(4096, 64, device=device)
    memory.fill()
    with pytest.raises(torch.OutOfMemoryError):
        model(larger).square().mean().backward()
    memory.relieve()
    assert_same(state(model, optimizer), before)
    model[0].pattern.validate()
    step(model, optimizer, x)
    growth.step()
    assert model[0].weight.isfinite().all()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_an_update_that_runs_out_of_memory_changes_nothing(device, memory):
    model, optimizer, growth, x = trained(device)
    step(model, optimizer, x)
    before = state(model, optimizer)
    memory.fill()
    try:
        growth.step()
    except torch.OutOfMemoryError:
        memory.relieve()
        assert_same(state(model, optimizer), before)
    memory.relieve()
    model[0].pattern.validate()
    step(model, optimizer, x)
    assert model[0].weight.isfinite().all()


def test_a_failing_product_changes_nothing(device, monkeypatch):
    """What running out of memory does, wherever there is a device: a product raises in the middle of backward."""
    model, optimizer, growth, x = trained(device)
    before = state(model, optimizer)
    from sparsekern.backends import choice

    def full(*args, **options):
        raise torch.OutOfMemoryError("no memory")

    products = choice.cpu_products if device.type == "cpu" else choice.cuda_products
    with monkeypatch.context() as patched:
        patched.setattr(products, "linear_weight_grad", full)
        with pytest.raises(torch.OutOfMemoryError, match="no memory"):
            step(model, optimizer, x)
    assert_same(state(model, optimizer), before)
    step(model, optimizer, x)
    growth.step()
    model[0].pattern.validate()


def test_layers_move_between_devices(device):
    """There and back, with the same topology, valid in both places, and equal results."""
    layer, x = layer_and_input("linear")
    expected = layer(x)
    moved = copy.deepcopy(layer).to(device)
    moved.pattern.validate()
    torch.testing.assert_close(moved(x.to(device)).cpu(), expected)
    back = moved.to("cpu")
    assert back.pattern.equal(layer.pattern)
    assert torch.equal(back.weight, layer.weight)
    pattern = Pattern.random((5, 6), 11).to(device)
    assert pattern.device.type == device.type
    pattern.validate()


MODULES = {
    "batch norm": (lambda: sparsekern.nn.BatchNorm2d(4, activation="relu"), (3, 4, 5, 6)),
    "GELU": (sparsekern.nn.GELU, (3, 4, 5)),
    "ViT": (lambda: make_model("vit", 3, 8, 5, width=12, depth=1, heads=2, patch=4), (2, 3, 8, 8)),
    "ResNet": (lambda: make_model("resnet", 3, 16, 5, width=4, depth=8), (4, 3, 16, 16)),
    "encoder": (lambda: torch.nn.Sequential(torch.nn.TransformerEncoderLayer(16, 2, 32, 0.0)), (5, 2, 16)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_networks_compute_on_a_gpu_what_they_do_on_the_cpu(name, device):
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module = make()
    if any(isinstance(each, torch.nn.Linear) for each in module.modules()):
        sparsekern.sparsify(module, 0.4)
    twin = copy.deepcopy(module).to(device)
    x = torch.randn(shape)
    on_cpu, there = x.clone().requires_grad_(), x.to(device).requires_grad_()
    with torch.backends.cudnn.flags(enabled=False):
        y, found = module(on_cpu), twin(there)
        torch.testing.assert_close(found.cpu(), y, atol=1e-4, rtol=1e-4)
        weights = torch.randn_like(y)
        (y * weights).sum().backward()
        (found * weights.to(device)).sum().backward()
    torch.testing.assert_close(there.grad.cpu(), on_cpu.grad, atol=1e-3, rtol=1e-3)
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad.cpu(), mine.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_masks_are_found_on_a_gpu(method, device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 40), torch.nn.Tanh(), torch.nn.Linear(40, 5)).to(device)
    batches = [(torch.randn(16, 12, device=device), torch.randint(5, (16,), device=device))]
    given = {"magnitude": (), "synflow": (torch.ones(1, 12, device=device),)}.get(method, (batches,))
    found = getattr(sparsekern.masks, method)(model, 0.1, *given)
    found.apply(model)
    layers = [layer for layer in model if isinstance(layer, SparseLinear)]
    assert sum(layer.nnz for layer in layers) == round(0.1 * 40 * 17)
    assert all(tensor.device.type == device for layer in layers for tensor in (layer.weight, *layer.pattern.tensors()))
    model(batches[0][0]).sum().backward()
