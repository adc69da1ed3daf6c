import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekern
from sparsekern.growth import GSE, SET, RigL, Static, find_sparse_layers
from sparsekern.models import MLP, ResNet, ViT
from sparsekern.nn import BatchNorm2d, SparseConv2d
from sparsekern.testing import forbid_dense
from sparsekern.tost import ToST, beta_at, coefficient_at, ghosts
from sparsekern.tost.phase import Phase
from sparsekern.tost.skip import INITIAL_WEIGHT, FreeBranch, SparseBranch
from sparsekern.tost.soft import SOFT, SoftReLU, soft_relu
from sparsekern.tost.survey import survey

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def seeded(one_thread):
    torch.manual_seed(0)


class Block(nn.Module):
    """A residual block as torchvision writes it: one in-place ReLU at two places, the sum as a function."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def fused_sequential():
    norm = BatchNorm2d(4, activation="relu")
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), norm, nn.Flatten(), nn.Linear(256, 10))


def torchvision_like():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Block(4, 4), Block(4, 8, 2), head)


def plain_sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.GroupNorm(2, 8),
        nn.ReLU6(inplace=True),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


MODELS = {
    "mlp": lambda: MLP(1, 8, 10, width=24, depth=2),
    "resnet A": lambda: ResNet(1, 10, width=4, depth=8),
    "resnet B": lambda: ResNet(1, 10, width=4, depth=8, shortcut="B"),
    "vit": lambda: ViT(1, 8, 10, width=16, depth=1, heads=2),
    "sequential": plain_sequential,
    "fused": fused_sequential,
    "torchvision": torchvision_like,
}
CONVOLUTIONS = {"mlp": 0, "resnet A": 7, "resnet B": 7, "vit": 0, "sequential": 2, "fused": 1, "torchvision": 4}
RELUS = {"mlp": 1, "resnet A": 7, "resnet B": 7, "vit": 0, "sequential": 2, "fused": 1, "torchvision": 3}
IMAGES = torch.rand(11, 1, 8, 8)
LABELS = torch.arange(11) % 10


def make(name, density=0.3, **options):
    model = MODELS[name]()
    if density < 1:
        sparsekern.sparsify(model, density=density)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, ToST(model, optimizer, **{"steps": 4, **options})


def train_step(model, optimizer, *others):
    loss = F.cross_entropy(model(IMAGES), LABELS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for each in others:
        each.step()
    return loss.item()


def jump(tost, step):
    tost.load_state_dict({**tost.state_dict(), "step": step})


def anatomy(model):
    """What a step's time and a checkpoint's contents come from."""
    hooks = [
        len(getattr(module, name)) for module in model.modules() for name in vars(module) if name.endswith("_hooks")
    ]
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        [(name, tuple(value.shape)) for name, value in model.state_dict().items()],
        [name for name, _ in model.named_parameters()],
        sum(hooks),
        [module.activation for module in model.modules() if isinstance(module, BatchNorm2d)],
    )


def relative(left, right):
    return ((left - right).abs().max() / right.abs().max()).item()


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_annealing_follows_its_schedule_at_every_step(steps):
    model, optimizer, tost = make("resnet A", steps=steps, beta=2.0)
    for t in range(steps):
        assert tost.steps == t
        assert not tost.over
        assert tost.beta == beta_at(t, steps, 2.0) == pytest.approx(2.0 / (1 - t / steps), rel=1e-12)
        assert tost.coefficient == coefficient_at(t, steps)
        assert tost.coefficient == pytest.approx(0.5 * (1 + math.cos(math.pi * t / steps)), abs=1e-15)
        if steps < 10:
            train_step(model, optimizer, tost)
        else:
            tost.step()
    assert tost.over
    assert (tost.beta, tost.coefficient) == (math.inf, 0.0)


def test_each_step_computes_what_the_formula_says():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tost = ToST(model, optimizer, steps=5, beta=1.5)
    weight, scale, shift = (parameter.detach() for parameter in tost.parameters())
    weight.copy_(torch.randn_like(weight))
    scale.copy_(torch.rand_like(scale) + 0.5)
    shift.copy_(torch.randn_like(shift))
    x = torch.randn(7, 1, 9, 9, dtype=torch.float64)

    def normalized(y):
        return (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    for t in range(5):
        past = normalized(F.conv2d(x, weight, stride=2)) * scale[:, None, None] + shift[:, None, None]
        summed = normalized(F.conv2d(x, model[0].weight, model[0].bias, 2, 1))
        summed = summed + (1 + math.cos(math.pi * t / 5)) / 2 * past
        torch.testing.assert_close(model(x), summed * torch.sigmoid(1.5 / (1 - t / 5) * summed))
        tost.step()
    torch.testing.assert_close(model(x), normalized(F.conv2d(x, model[0].weight, model[0].bias, 2, 1)).relu())


@pytest.mark.parametrize("branch", ["sparse", "free"])
@pytest.mark.parametrize("name", MODELS)
def test_removal_leaves_the_plain_model(name, branch):
    plain = anatomy(MODELS[name]())
    sparse = MODELS[name]()
    sparsekern.sparsify(sparse, density=0.3)
    expected = anatomy(sparse)
    model, optimizer, tost = make(name, branch=branch)
    assert len(tost.report.skips) == CONVOLUTIONS[name]
    assert len(tost.report.neurons) == RELUS[name]
    assert anatomy(model)[1:3] == expected[1:3]  # keys, shapes and parameters, in the phase too
    for _ in range(4):
        assert not tost.over
        train_step(model, optimizer, tost)
    assert anatomy(model) == expected
    assert plain[3] == 0
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(model.parameters())
    assert optimizer.state.keys() == set(model.parameters())
    assert list(tost.parameters()) == []
    twin = MODELS[name]()
    sparsekern.sparsify(twin, density=0.3)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(IMAGES), twin(IMAGES))
    train_step(model, optimizer, tost)


@pytest.mark.parametrize("options", [{}, {"ghost_skips": False}, {"ghost_neurons": False}, {"branch": "free"}])
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_function_before_and_after_removal(name, mode, options):
    steps = 10**8
    model, optimizer, tost = make(name, steps=steps, **options)
    for _ in range(3):  # branches that have learned something
        train_step(model, optimizer, tost)
    early = model.train(mode)(IMAGES)
    jump(tost, steps - 1)
    assert not tost.over
    before = model(IMAGES)
    tost.step()
    assert tost.over
    after = model(IMAGES)
    assert relative(before, after) < 1e-6
    if tost.report.neurons and options != {"ghost_neurons": False}:
        assert relative(early, after) > 1e-3


@pytest.mark.parametrize("name", SOFT)
def test_soft_relu_is_its_formula(name):
    formulas = {
        "swish": F.silu,
        "gelu": F.gelu,
        "mish": F.mish,
        "elu": F.elu,
        "softplus": lambda z: F.softplus(z, threshold=100),
    }
    x = torch.linspace(-6, 6, 601, dtype=torch.float64, requires_grad=True)
    for beta in (0.5, 1.0, 7.0):
        y = soft_relu(x, torch.tensor(beta, dtype=torch.float64), name)
        expected = formulas[name](beta * x) / beta
        torch.testing.assert_close(y, expected)
        for twice in (False, True):  # in one pass, and from parts that can be differentiated again
            grads = [
                torch.autograd.grad(value.sum(), x, create_graph=twice, retain_graph=True) for value in (y, expected)
            ]
            torch.testing.assert_close(*grads)
        assert (y - x.relu()).abs().max() <= 1 / beta
    x = torch.tensor([-2.0, -0.3, 0.1, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    for beta in (1.0, 4.0):
        function = lambda x, beta=beta: soft_relu(x, torch.tensor(beta, dtype=torch.float64), name)  # noqa: E731
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("name", SOFT)
def test_soft_relu_of_large_beta_is_relu(name, dtype):
    x = torch.tensor([-3e4, -17.0, -1e-3, 0.0, 1e-3, 0.3, 17.0, 3e4]).to(dtype).requires_grad_()
    beta = torch.tensor(1e12, dtype=torch.float64)
    y = soft_relu(x, beta, name)
    assert y.dtype == dtype
    assert relative(y, x.relu()) < 1e-12
    (once,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(once, grad.detach())
    (second,) = torch.autograd.grad(grad.sum(), x)
    slopes = [0, 0, 0, grad[3].item(), 1, 1, 1, 1]
    assert grad.tolist() == pytest.approx(slopes, abs=1e-6)
    assert 0 <= grad[3] <= 1
    assert not second.isnan().any()  # at 0 it is of the size of beta
    assert second[[0, 1, 2, 4, 5, 6, 7]].abs().max() < 1e-6


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SOFT)
def test_soft_relu_rounds_half_types_once(name, dtype):
    x = torch.randn(2000).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    beta = torch.tensor(3.0, dtype=torch.float64)
    y, expected = soft_relu(x, beta, name), soft_relu(wide, beta, name)
    assert torch.equal(y, expected.to(dtype))
    direction = torch.randn(2000).to(dtype)
    (grad,) = torch.autograd.grad(y, x, direction)
    (expected_grad,) = torch.autograd.grad(expected, wide, direction.float())
    assert torch.equal(grad, expected_grad.to(dtype))


def test_relu6_is_softened_at_both_ends():
    soft = SoftReLU(Phase(100, 1e9), "swish", ceiling=6.0)
    x = torch.linspace(-10, 10, 2001)
    torch.testing.assert_close(soft(x), F.relu6(x), rtol=0, atol=1e-6)
    soft.phase.over = True
    assert torch.equal(soft(x), F.relu6(x))


GEOMETRIES = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 0},
    {"padding": 0, "stride": (2, 1)},
    {"padding": (2, 1), "dilation": (2, 1), "stride": 2},
    {"padding": (0, 3), "dilation": 2},
    {"padding": 3},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "groups": 2},
]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_branches_see_the_middle_of_the_kernel(geometry, sparse):
    dense = nn.Conv2d(4, 6, 3, **geometry)
    conv = SparseConv2d.from_dense(dense, density=0.5) if sparse else dense
    x, one = torch.randn(5, 4, 11, 10), torch.ones((), dtype=torch.float64)
    branch = SparseBranch(conv, None, None)
    inner = branch.conv.to_dense() if sparse else branch.conv.weight
    assert type(branch.conv) is type(conv)
    assert inner.shape == (6, 4 // conv.groups, 1, 1)
    assert set(inner.unique().tolist()) <= {0.0, torch.tensor(INITIAL_WEIGHT).item()}
    middle = torch.zeros_like(dense.weight)
    middle[:, :, 1:2, 1:2] = inner.detach() * 1e4
    expected = F.conv2d(x, middle, None, dense.stride, dense.padding, dense.dilation, dense.groups)
    assert expected.shape == conv(x).shape
    torch.testing.assert_close(branch.conv(branch.centred(x)) * 1e4, expected)
    branch.norm.eval()
    torch.testing.assert_close(branch(x, expected, one * 0.5), expected + branch.norm(expected * 1e-4) / 2)
    middle = torch.zeros(6, 4, 3, 3)
    middle[1:5, :, 1, 1] = torch.eye(4)
    expected = F.conv2d(x, middle, None, dense.stride, dense.padding, dense.dilation)
    torch.testing.assert_close(FreeBranch(conv)(x, None, one * 0.5), expected / 2)
    torch.testing.assert_close(FreeBranch(conv)(x, expected, one * 0.5), expected * 1.5)


@pytest.mark.parametrize("density", [None, 0.5, 1.0])
def test_density_of_branches(density):
    model, _, _ = make("resnet A", density=0.3, branch_density=density)
    counts = {name: layer.nnz for name, layer in find_sparse_layers(model).items()}
    _, _, tost = make("resnet A", density=0.3, branch_density=density)
    for conv, _, what in tost.report.skips:
        layer = find_sparse_layers(model)[conv]
        size = layer.in_channels * layer.out_channels
        edges = max(1, round((layer.density if density is None else density) * size))
        assert what == f"1x1 convolution of {edges:,} weights"
        assert counts[conv] == layer.nnz


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).tanh()


class Odd(nn.Module):
    """Convolutions and ReLUs that the recipe does not fit, each for another reason."""

    def __init__(self):
        super().__init__()
        self.no_norm = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 3, padding=1)
        self.two_norms = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.shares1, self.shares2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shared = nn.BatchNorm2d(4)
        self.narrow, self.norm3 = nn.Conv2d(4, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.frozen, self.norm4 = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.large, self.norm5 = nn.Conv2d(2, 2, 5, padding=2), nn.BatchNorm2d(2)
        self.frozen.requires_grad_(False)
        self.active, self.norm6 = nn.Conv2d(4, 4, 3, padding=1), NormAndActivation(4)

    def forward(self, x):
        x = F.relu(self.no_norm(self.norm6(self.active(x))))
        y = self.two_norms(x)
        x = (self.norm1(y) + self.norm2(y)).relu()
        x = self.shared(self.shares1(x)) + self.shared(self.shares2(x))
        x = torch.relu(self.norm3(self.narrow(x)))
        return self.norm5(self.large(self.norm4(self.frozen(x))))


def test_what_does_not_fit_is_named():
    model = nn.Sequential(Odd())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    left = dict(ToST(model, optimizer, steps=3, branch="free").report.left)
    assert left == {
        "0.no_norm": "no norm reads its output",
        "0.unused": "no call of it was found",
        "0.two_norms": "several norms read its output: 0.norm1, 0.norm2",
        "0.shares1": "its norm, 0.shared, has other inputs too",
        "0.shares2": "its norm, 0.shared, has other inputs too",
        "0.narrow": "from 4 to 2 channels there is no branch without parameters",
        "0.active": "its norm, 0.norm6, is a NormAndActivation, which may end in an activation",
        "0": "calls 3 ReLUs as a function: make it an nn.ReLU",
    }
    model = nn.Sequential(Odd())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    report = ToST(model, optimizer, steps=3, ghost_neurons=False, exclude=["*.norm3"]).report
    left = dict(report.left)
    assert left["0.frozen"] == "its weight is not trained by the optimizer"
    assert left["0.narrow"] == "excluded"
    assert report.skips == ()
    assert "0.frozen     left: its weight is not trained by the optimizer" in str(report).splitlines()
    for kind in ("mlp", "vit"):
        assert ("", "no 3x3 convolution") in make(kind)[2].report.left
    assert ("", "no ReLU") in make("vit")[2].report.left


class Untraceable(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.inner = inner

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        return self.inner(self.relu(self.norm(self.conv(x))))


def test_modules_that_cannot_be_traced():
    model = Untraceable(nn.Sequential(Untraceable(nn.Identity()), nn.ModuleDict({"block": Block(4, 4)})))
    found = survey(model)
    assert found.pairs == {
        "conv": "norm",
        "inner.0.conv": "inner.0.norm",
        "inner.1.block.conv1": "inner.1.block.bn1",
        "inner.1.block.conv2": "inner.1.block.bn2",
    }
    assert found.untraced == ["", "inner.0"]
    model = Untraceable(nn.Identity())
    tost = ToST(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=3)
    assert dict(tost.report.left) == {"": "its forward cannot be traced: what it calls itself is not seen"}
    assert tost.report.skips[0][:2] == ("conv", "norm")
    model(IMAGES)


def test_survey_leaves_the_model_and_the_generator_alone():
    class Drawing(Block):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    model = nn.Sequential(nn.Conv2d(1, 4, 1), Drawing(4, 4))
    state, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert len(survey(model).pairs) == 2
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_branches_join_the_groups_of_their_neighbours():
    model = MODELS["resnet A"]()
    sparsekern.sparsify(model, density=0.3)
    weights = [(n, p) for n, p in model.named_parameters() if n.endswith("weight") and "norm" not in n]
    others = [(n, p) for n, p in model.named_parameters() if not (n.endswith("weight") and "norm" not in n)]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    before = copy.deepcopy([{**group, "params": len(group["params"])} for group in optimizer.param_groups])
    tost = ToST(model, optimizer, steps=2)
    decayed, undecayed = optimizer.param_groups
    assert len(decayed["params"]) == len(weights) + 7
    assert len(undecayed["params"]) == len(others) + 14
    assert decayed["param_names"][-1] == "blocks.2.conv2.ghost.weight"
    for _ in range(2):
        train_step(model, optimizer, tost, scheduler)
    after = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    for group in (*before, *after):
        del group["lr"]
    assert after == before
    train_step(model, optimizer, tost, scheduler)


def test_branches_train_and_their_gradients_are_dropped():
    model, optimizer, tost = make("torchvision", steps=50)
    start = [parameter.detach().clone() for parameter in tost.parameters()]
    F.cross_entropy(model(IMAGES), LABELS).backward()
    assert all(parameter.grad is not None for parameter in tost.parameters())
    optimizer.step()
    tost.step()
    assert all(parameter.grad is None for parameter in tost.parameters())
    moved = [not torch.equal(old, new) for old, new in zip(start, tost.parameters(), strict=True)]
    assert all(moved)


def test_branches_follow_the_mode_of_their_norm():
    model, _, tost = make("torchvision")
    norms = [skip.branch.norm for skip in tost._skips]
    model(IMAGES)
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * 4
    model.eval()
    first = model(IMAGES)
    model[2].bn1.train()
    model(IMAGES)
    assert [int(norm.num_batches_tracked) for norm in norms] == [2, 1, 1, 1]
    assert relative(model(IMAGES), first) > 0


def test_branches_are_freed():
    model, optimizer, tost = make("resnet A", steps=2)
    references = [weakref.ref(parameter) for parameter in tost.parameters()]
    assert len(references) == 21
    train_step(model, optimizer, tost)
    train_step(model, optimizer, tost)
    gc.collect()
    assert not any(reference() for reference in references)


@pytest.mark.parametrize("first", ["growth", "tost"])
@pytest.mark.parametrize("method", [Static, SET, RigL, GSE])
def test_growth_goes_on_as_without_ghosts(method, first):
    model = MODELS["resnet A"]()
    sparsekern.sparsify(model, density=0.3)
    layers = find_sparse_layers(model)
    edges = {name: layer.nnz for name, layer in layers.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    tost = ToST(model, optimizer, steps=5) if first == "tost" else None
    growth = method(model, optimizer, interval=2, end=100)
    tost = tost or ToST(model, optimizer, steps=5)
    topologies = [skip.branch.conv.row_indices.clone() for skip in tost._skips]
    replaced = 0
    for step in range(7):
        train_step(model, optimizer)
        updates = growth.step()
        replaced += sum(update.replaced for update in updates)
        assert {update.layer for update in updates} <= layers.keys()
        if step == 3:
            rows = [skip.branch.conv.row_indices for skip in tost._skips]
            assert all(map(torch.equal, rows, topologies))
        tost.step()
        assert find_sparse_layers(model) == layers
        assert {name: layer.nnz for name, layer in layers.items()} == edges
    assert (replaced > 0) == (method is not Static)


@pytest.mark.parametrize("branch", ["sparse", "free"])
@pytest.mark.parametrize("density", [0.3, 1])
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_state_resumes_to_the_bit(stop, density, branch):
    def begin():
        torch.manual_seed(stop)
        return make("torchvision", density, steps=4, branch=branch)

    def states(run):
        return [each.state_dict() for each in run]

    whole = begin()
    for _ in range(stop):
        train_step(whole[0], whole[1], whole[2])
    saved = copy.deepcopy(states(whole))
    torch.manual_seed(99)
    again = make("torchvision", density, steps=4, branch=branch)
    for part, state in zip((again[0], again[2], again[1]), (saved[0], saved[2], saved[1]), strict=True):
        part.load_state_dict(state)
    losses = [[train_step(*run) for _ in range(4)] for run in (whole, again)]
    assert losses[0] == losses[1]
    assert whole[2].over
    assert again[2].over
    for left, right in zip(whole[0].state_dict().values(), again[0].state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_state_of_something_else_is_refused():
    _, _, tost = make("torchvision")
    _, _, other = make("torchvision", neuron="gelu")
    with pytest.raises(ValueError, match="the state has 'gelu' for neuron; expected 'swish'"):
        tost.load_state_dict(other.state_dict())
    state = tost.state_dict()
    with pytest.raises(ValueError, match=r"convolution '2\.conv1' has a branch in the state or here, and not in"):
        tost.load_state_dict({**state, "branches": {k: v for k, v in state["branches"].items() if k != "2.conv1"}})
    _, _, wider = make("torchvision", density=1)
    with pytest.raises(ValueError, match=r"the branch of convolution '2\.conv1' does not fit"):
        tost.load_state_dict({**state, "branches": wider.state_dict()["branches"]})
    tost.finish()
    with pytest.raises(ValueError, match="the state is of step 0, and the ghosts are removed here"):
        tost.load_state_dict(state)


def test_copies_share_the_phase():
    model, optimizer, tost = make("torchvision", steps=3)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(3):
        train_step(model, optimizer, tost)
        average.update_parameters(model)
        assert not tost.over or average(IMAGES).isfinite().all()
        if not tost.over:
            ghostly = average(IMAGES)
    twin = MODELS["torchvision"]()
    sparsekern.sparsify(twin, density=0.3)
    twin.load_state_dict(average.module.state_dict())
    assert torch.equal(average(IMAGES), twin(IMAGES))
    assert relative(ghostly, twin(IMAGES)) > 1e-3
    model, _, tost = make("resnet A")
    image = copy.deepcopy(model).eval()
    assert torch.equal(image(IMAGES), model.eval()(IMAGES))
    tost.finish()
    assert torch.equal(image(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("name", "options"),
    [("fused", {}), ("sequential", {"ghost_neurons": False}), ("sequential", {"ghost_skips": False})],
)
def test_compiled_model_follows_the_phase(name, options):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, optimizer, tost = make(name, steps=3, **options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(5):
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES))
        train_step(model, optimizer, tost)
    assert tost.over
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("branch", ["sparse", "free"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["resnet B", "torchvision"])
def test_autocast(name, dtype, branch):
    model, optimizer, tost = make(name, branch=branch, steps=2)
    for _ in range(3):
        with torch.autocast("cpu", dtype):
            logits = model(IMAGES)
        assert logits.dtype == dtype
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), LABELS).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in (*model.parameters(), *tost.parameters()))
        optimizer.step()
        tost.step()


@pytest.mark.parametrize("name", ["resnet A", "torchvision"])
def test_second_derivatives(name):
    model, _, tost = make(name)
    loss = F.cross_entropy(model(IMAGES), LABELS)
    parameters = [*model.parameters(), *tost.parameters()]
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    norm = sum(gradient.square().sum() for gradient in gradients)
    assert all(g.isfinite().all() for g in torch.autograd.grad(norm, parameters, allow_unused=True) if g is not None)


def test_nothing_dense_is_made():
    model, optimizer, tost = make("resnet B", density=0.1, steps=3)
    growth = GSE(model, optimizer, interval=2, end=100)
    images, labels = torch.rand(37, 1, 8, 8), torch.arange(37) % 10
    with forbid_dense(model, batch_sizes=(37,)):
        for _ in range(5):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            growth.step()
            tost.step()
            optimizer.zero_grad()


def test_hooks_of_a_relu_stay():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    seen = []
    handle = model[1].register_forward_hook(lambda *_: seen.append(1))
    tost = ToST(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=2)
    original = tost._relus["1"][0]
    model.eval()
    model(torch.rand(2, 3))
    tost.finish()
    assert model[1] is original
    assert not original.training
    model(torch.rand(2, 3))
    assert seen == [1, 1]
    handle.remove()
    model(torch.rand(2, 3))
    assert seen == [1, 1]


def test_relus_that_are_left():
    class Own(nn.ReLU):
        def forward(self, x):
            return x

    layer = nn.TransformerEncoderLayer(8, 2, activation=nn.ReLU(), batch_first=True)
    model = nn.Sequential(layer, Own(), nn.ReLU())
    left = dict(ToST(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=2, exclude=["2"]).report.left)
    assert left["0.activation"] == "torch's fused encoder layer computes its own ReLU in evaluation"
    assert left["1"] == "is a Own with a forward of its own"
    assert left["2"] == "excluded"


def test_norm_without_its_convolution():
    model, _, _ = make("torchvision")
    with pytest.raises(RuntimeError, match=r"norm '2\.bn1' was called without its convolution '2\.conv1'"):
        model[2].bn1(torch.rand(2, 4, 5, 5))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0; expected an integer of at least 1"),
        ({"steps": 2.5}, ValueError, r"steps is 2\.5"),
        ({"neuron": "relu"}, ValueError, "neuron is 'relu'; expected one of swish, gelu, mish, elu, softplus"),
        ({"beta": 0}, ValueError, "beta is 0; expected a positive number"),
        ({"beta": math.nan}, ValueError, "beta is nan"),
        ({"branch": "dense"}, ValueError, "branch is 'dense'; expected one of sparse, free"),
        ({"branch_density": 2}, ValueError, "branch_density is 2; expected a number in"),
        ({"exclude": "stem"}, TypeError, "exclude is the string 'stem'"),
    ],
)
def test_bad_arguments(options, error, message):
    model = MODELS["torchvision"]()
    before = anatomy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        ToST(model, optimizer, **{"steps": 3, **options})
    assert anatomy(model) == before
    with pytest.raises(TypeError, match="model must be"):
        ToST(optimizer, optimizer, steps=3)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got NoneType"):
        ToST(model, None, steps=3)


def test_ghosts_that_cannot_all_be_made_leave_the_model_as_it_was(monkeypatch):
    made = []

    def no_third(conv, density, generator):
        if len(made) == 2:
            raise MemoryError
        made.append(SparseBranch(conv, density, generator))
        return made[-1]

    monkeypatch.setattr(ghosts, "SparseBranch", no_third)
    model = MODELS["resnet A"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, held = anatomy(model), len(optimizer.param_groups[0]["params"])
    with pytest.raises(MemoryError):
        ToST(model, optimizer, steps=3)
    assert len(made) == 2
    assert anatomy(model) == before
    assert len(optimizer.param_groups[0]["params"]) == held


@pytest.mark.parametrize("name", ["torchvision", "resnet A"])
def test_a_pickled_model_computes_the_same_in_the_ghost_phase(name):
    model, optimizer, tost = make(name, steps=5)
    train_step(model, optimizer, tost)
    again = pickle.loads(pickle.dumps(model.eval()))
    assert torch.equal(again(IMAGES), model(IMAGES))
