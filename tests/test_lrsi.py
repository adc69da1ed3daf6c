import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekern
from sparsekern.models import MLP, ResNet, ViT
from sparsekern.testing import forbid_dense
from sparsekern.tost import ToST, lrsi

MODELS = {
    "mlp": lambda: MLP(1, 8, 10, width=32, depth=3),
    "resnet": lambda: ResNet(1, 10, width=4, depth=8),
    "vit": lambda: ViT(1, 8, 10, width=16, depth=1, heads=2),
    "torch": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(384, 10),
    ),
}


@pytest.fixture(autouse=True)
def seeded(one_thread):
    torch.manual_seed(0)


def make(name, density=0.2, exclude=()):
    model = MODELS[name]()
    sparsekern.sparsify(model, density=density, exclude=exclude)
    return model


def draw(count, size=16):
    """Ten classes, each a pattern under noise."""
    patterns = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = [torch.randint(10, (size,)) for _ in range(count)]
    return [(patterns[label] + 0.3 * torch.randn(size, 1, 8, 8), label) for label in labels]


def loss_after_one_step(model, eta):
    """Of fresh images, after a step of length `eta` down the gradient of other ones."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    (images, labels), (others, their_labels) = draw(2, 256)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)
    norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(eta / norm * gradient)
    return F.cross_entropy(model(others), their_labels).item()


@pytest.mark.parametrize("name", MODELS)
def test_the_first_step_lowers_the_loss_more(name):
    model = make(name)
    scaled = copy.deepcopy(model)
    report = lrsi(scaled, draw(20), iterations=60, lr=0.03)
    plain, better = (loss_after_one_step(each, 0.1) for each in (model, scaled))
    assert better < plain - 0.02
    assert min(report.norms) < report.norms[0] or report.losses[-1] < report.losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_is_its_scale_times_what_it_was(name):
    model = make(name)
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model[3].eval() if name == "torch" else model.train()
    modes = [module.training for module in model.modules()]
    report = lrsi(model, draw(5), iterations=6, lr=0.1)
    assert report.scales.keys() == parameters.keys()
    assert len(report.norms) == 6
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, (parameters[key] * report.scales[key])), key
        assert parameter.grad is None
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in model.named_buffers())
    moved = [row.scale != 1 for row in report.rows]
    assert sum(moved) > len(moved) / 3
    assert all(row.note.startswith("left: is all zeros") for row in report.rows if row.scale == 1)


@pytest.mark.parametrize("gamma", [0.0, 3.0, 100.0])
def test_iterations_are_the_written_ones(gamma):
    """Dense formulas in float64: a long gradient is shortened, a short one probed."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[2].weight.mul_(5)
    batches = [(4 * torch.randn(5, 3).double(), torch.randint(2, (5,))) for _ in range(7)]
    report = lrsi(copy.deepcopy(model), batches, iterations=12, lr=0.05, eta=0.1, gamma=gamma)
    initial = {name: parameter.detach() for name, parameter in model.named_parameters()}
    scales = {name: torch.ones((), dtype=torch.float64, requires_grad=True) for name in initial}
    adam = torch.optim.Adam(scales.values(), lr=0.05)
    halves = itertools.cycle(batches)
    norms, losses, largest = [], [], 0.0

    def loss(parameters, *chosen):
        images, labels = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, parameters, (images,)), labels)

    for _ in range(12):
        values = {name: initial[name] * scale for name, scale in scales.items()}
        first, second = next(halves), next(halves)
        gradients = torch.autograd.grad(loss(values, first, second), list(values.values()), create_graph=True)
        norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
        norms.append(norm.item())
        objective = norm
        if norm <= gamma:
            steps = dict(zip(values, gradients, strict=True))
            probe = {name: value - 0.1 * (steps[name] / norm).detach() for name, value in values.items()}
            objective = loss(probe, first, next(halves))
            losses.append(objective.item())
        for scale, slope in zip(scales.values(), torch.autograd.grad(objective, list(scales.values())), strict=True):
            largest = max(largest, slope.abs().item())
            scale.grad = slope.clamp(-1, 1)
        adam.step()
    assert largest > 1.5 or gamma == 100
    assert (len(losses) == 0, len(losses) == 12) == (gamma == 0, gamma == 100)
    assert report.norms == pytest.approx(norms, rel=1e-9)
    assert report.losses == pytest.approx(losses, rel=1e-9)
    assert report.scales == pytest.approx({name: scale.item() for name, scale in scales.items()}, rel=1e-9)


def test_scales_have_a_floor():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = (nn.Parameter(torch.ones(3)) for _ in range(2))

        def forward(self, x):
            return x + self.weight + self.bias

    model = Sum()
    report = lrsi(
        model, [(torch.zeros(2, 3),) * 2], lambda y, _: y.mean(), iterations=9, lr=0.3, gamma=9.0, min_scale=0.25
    )
    assert report.scales == {"weight": 0.25, "bias": 0.0}
    assert model.weight.tolist() == [0.25] * 3
    assert model.bias.tolist() == [0.0] * 3


def test_what_is_left_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = sparsekern.SparseLinear(64, 10, density=0.005)
            self.unused = nn.Linear(2, 2)
            self.dense = sparsekern.SparseLinear(10, 10, density=1.0)
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x):
            return self.frozen * self.dense(self.used(x.flatten(1)))

    model = Idle()
    nn.init.zeros_(model.used.bias)
    before = copy.deepcopy(model.state_dict())
    report = lrsi(model, draw(3), iterations=3)
    notes = {row.name: row.note for row in report.rows}
    empty = int((model.used.pattern.fan_in() == 0).sum())
    assert empty > 0
    assert notes == {
        "frozen": "left: is frozen",
        "used.weight": f"{empty} of 10 rows have no edges",
        "used.bias": "left: is all zeros",
        "unused.weight": "left: the loss does not depend on it",
        "unused.bias": "left: the loss does not depend on it",
        "dense.weight": "",
        "dense.bias": "",
    }
    for name in ("frozen", "used.bias", "unused.weight", "unused.bias"):
        assert report.scales[name] == 1
        assert torch.equal(model.state_dict()[name], before[name])
    assert report.scales["dense.weight"] != 1
    assert "used.bias" in str(report)
    assert report.brief.startswith("lrsi: the gradient's norm went from")


def test_nothing_dense_is_made_beside_ghosts():
    model = make("resnet", density=0.05)
    tost = ToST(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=5)
    branches = copy.deepcopy([skip.branch.state_dict() for skip in tost._skips])
    with forbid_dense(model, batch_sizes=(37, 74)):
        lrsi(model, draw(5, 37), iterations=3, gamma=2.0)
    for skip, before in zip(tost._skips, branches, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in skip.branch.state_dict().items())


@pytest.mark.parametrize("exclude", [(), ("stem", "blocks.0*")])
def test_rows_without_edges_and_dense_layers(exclude):
    model = make("resnet", density=0.02, exclude=exclude)
    report = lrsi(model, draw(5), iterations=5)
    assert any("rows have no edges" in row.note for row in report.rows)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_gradients_that_are_not_finite_leave_the_model_as_it_was():
    model = make("mlp")
    before = copy.deepcopy(model.state_dict())
    good = draw(4)
    bad = (torch.full((16, 1, 8, 8), float("nan")), torch.zeros(16, dtype=torch.int64))
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan in iteration 3"):
        lrsi(model, [*good, bad], iterations=9, gamma=0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "batches is empty"),
        (iter(draw(3)), {}, "batches cannot be started anew after its end"),
        (draw(2), {"iterations": 0}, "iterations is 0; expected an integer of at least 1"),
        (draw(2), {"lr": -1}, "lr is -1; expected a finite number of at least 0"),
        (draw(2), {"eta": float("nan")}, "eta is nan"),
        (draw(2), {"gamma": -0.5}, r"gamma is -0\.5"),
        (draw(2), {"min_scale": -1}, "min_scale is -1"),
    ],
)
def test_bad_arguments(batches, options, message):
    with pytest.raises(ValueError, match=message):
        lrsi(make("mlp"), batches, **options)


def test_model_without_parameters():
    with pytest.raises(ValueError, match="model has no parameter that requires a gradient"):
        lrsi(nn.Flatten(), draw(2))


def test_torchs_attention_is_differentiated_twice():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    sparsekern.sparsify(model, 0.5)
    dense = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    batches = [(torch.randn(6, 3, 8), torch.randn(6, 3, 8)) for _ in range(3)]
    for network in (model, dense):
        report = lrsi(network, batches, loss=F.mse_loss, iterations=2, gamma=0.0)
        assert len(report.norms) == 2
        assert all(row.scale != 1 for row in report.rows if "proj" in row.name and not row.note)
