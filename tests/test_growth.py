import copy
import math
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsekern import GSE, SET, RigL, SparseConv2d, SparseLinear, Static
from sparsekern.backends.choice import topology_of
from sparsekern.growth import Growth, cosine_share, find_sparse_layers
from sparsekern.growth.edges import Move
from sparsekern.growth.samplers import sample_uniform
from sparsekern.growth.select import select_by_magnitude
from sparsekern.pattern import Pattern

METHODS = {
    "uniform": lambda model, optimizer, **options: GSE(model, optimizer, "uniform", **options),
    "grabo": lambda model, optimizer, **options: GSE(model, optimizer, "grabo", **options),
    "graest": lambda model, optimizer, **options: GSE(model, optimizer, "graest", **options),
    "set": SET,
    "rigl": RigL,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = SparseLinear(12, 20, density=0.2), nn.Tanh(), SparseLinear(20, 7, density=0.3)
    return nn.Sequential(*layers).to(dtype)


def batch(model, size=16, seed=0):
    weight = next(model.parameters())
    return torch.randn(size, 12, generator=torch.Generator().manual_seed(seed)).to(weight)


def backward(model, x):
    (model(x).square().sum() / 16).backward()


def train_step(model, optimizer, growth, x):
    optimizer.zero_grad()
    backward(model, x)
    optimizer.step()
    return growth.step()


def patterns(model):
    return {name: layer.pattern.clone() for name, layer in find_sparse_layers(model).items()}


def unchanged(model, before):
    return all(layer.pattern.equal(before[name]) for name, layer in find_sparse_layers(model).items())


# -- schedule


def test_cosine_share():
    assert cosine_share(0, 0.2, 100) == 0.2
    assert cosine_share(50, 0.2, 100) == pytest.approx(0.1)
    assert cosine_share(25, 0.2, 100) == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    assert cosine_share(99, 0.2, 100) > 0
    assert cosine_share(100, 0.2, 100) == cosine_share(1000, 0.2, 100) == cosine_share(0, 0.2, 0) == 0


@pytest.mark.parametrize("method", METHODS)
def test_updates_follow_the_schedule(method, device):
    model = mlp().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    growth = METHODS[method](model, optimizer, alpha=0.3, interval=3, end=10)
    made = {}
    for step in range(1, 16):
        due = step in (3, 6, 9)
        assert growth.armed == due
        watched = due and method != "set"
        assert all((layer.watcher is not None) == watched for layer in growth.layers.values())
        before = patterns(model)
        if updates := train_step(model, optimizer, growth, batch(model, seed=step)):
            made[step] = updates
        assert unchanged(model, before) != due
        assert growth.steps == step
    assert list(made) == [3, 6, 9]
    for step, updates in made.items():
        assert [update.layer for update in updates] == ["0", "2"]
        for update, layer in zip(updates, growth.layers.values(), strict=True):
            asked = math.ceil(0.3 / 2 * (1 + math.cos(math.pi * step / 10)) * layer.nnz)
            assert (update.step, update.nnz, update.asked, update.replaced) == (step, layer.nnz, asked, asked)
            assert update.density == layer.density
            assert update.candidates == (asked if method == "set" else layer.nnz)
            assert update.skipped == ""


def test_share_of_edges_is_not_rounded_up_by_float_noise():
    layer = SparseLinear(10, 6, bias=False, density=0.5)  # 30 edges; 0.1 * 30 is 3.0000000000000004
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    (update,) = train_step(
        layer, optimizer, SET(layer, optimizer, alpha=0.1, interval=1, end=10**12), torch.ones(1, 10)
    )
    assert update.asked == 3


def test_gamma_sets_the_number_of_candidates():
    for gamma, wanted in ((0.25, 12), (1.0, 48), (2.0, 96), (100.0, 192)):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        growth = GSE(model, optimizer, "uniform", gamma=gamma, alpha=0.5, interval=1, end=100)
        update, _ = train_step(model, optimizer, growth, batch(model))
        assert update.candidates == wanted
        assert update.replaced == min(wanted, update.asked)


def test_static_changes_nothing():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = patterns(model)
    growth = Static(model, optimizer, interval=1, end=100)
    assert all(train_step(model, optimizer, growth, batch(model)) == [] for _ in range(5))
    assert unchanged(model, before)


# -- what an update does


def edge_values(layer, tensors):
    """{(row, column): values of that edge}."""
    rows, cols = (side.tolist() for side in layer.pattern.edges())
    return dict(zip(zip(rows, cols, strict=True), zip(*(t.tolist() for t in tensors), strict=True), strict=True))


def followed_tensors(layer, optimizer):
    state = optimizer.state[layer.weight]
    moving = [state[key] for key in sorted(state) if isinstance(state[key], torch.Tensor) and state[key].dim() == 1]
    return [layer.weight.detach(), layer.weight.grad, *moving]


OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True), 5),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), 3),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5), 4),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.01), 3),
}


def random_layer(rng):
    """A layer of random shape, density and geometry, and an input for it."""
    density = float(torch.rand((), generator=rng)) * 0.6 + 0.02
    a, b, c, k = torch.randint(1, 9, (4,), generator=rng).tolist()
    if torch.rand((), generator=rng) < 0.5:
        return SparseLinear(3 * a, 3 * b, density=density), torch.randn(c, 3 * a)
    groups = 2 if k > 4 else 1
    stride, dilation = 1 + c % 3, 1 + b % 2
    layer = SparseConv2d(
        2 * a, 2 * b, (1 + k % 3, 2), stride, k % 2, dilation, groups, padding_mode="zeros", density=density
    )
    return layer, torch.randn(2, 2 * a, 7, 6)


def update_violations(layer, optimizer, growth, x):
    """Makes one update; what it got wrong."""
    optimizer.zero_grad()
    layer(x).square().sum().backward()
    optimizer.step()
    tensors = followed_tensors(layer, optimizer)
    before = edge_values(layer, tensors)
    magnitude = {edge: abs(values[0]) for edge, values in before.items()}
    (update,) = growth.step()
    after = edge_values(layer, followed_tensors(layer, optimizer))

    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    rows, cols = layer.matrix_shape
    stored = [col * rows + row for row, col in after]
    problems = {
        "edges": len(after) != layer.nnz or len(before) != layer.nnz,
        "unsorted": stored != sorted(set(stored)),
        "range": not all(0 <= row < rows and 0 <= col < cols for row, col in after),
        "count": not len(gone) == len(new) == update.replaced,
        "asked": update.replaced != min(update.asked, update.candidates),
        "kept": any(after[edge] != before[edge] for edge in after.keys() & before.keys()),
        "grown": any(any(value != 0 for value in after[edge]) for edge in new),
        "pruned": max((magnitude[edge] for edge in gone), default=0)
        > min((magnitude[edge] for edge in after.keys() & before.keys()), default=math.inf),
        "references": any(a is not b for a, b in zip(tensors[1:], followed_tensors(layer, optimizer)[1:], strict=True)),
    }
    layer.pattern.validate()
    return [problem for problem, present in problems.items() if present], update.replaced


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_thousand_updates_move_every_value_with_its_edge(method, optimizer, device):
    rng = torch.Generator().manual_seed(10 * list(METHODS).index(method) + list(OPTIMIZERS).index(optimizer))
    torch.manual_seed(0)
    make_optimizer, moving = OPTIMIZERS[optimizer]
    violations, replaced = [], 0
    for _ in range(5):
        layer, x = (each.to(device) for each in random_layer(rng))
        made = make_optimizer(layer.parameters())
        growth = METHODS[method](layer, made, alpha=0.5, interval=1, end=10**6)
        for _ in range(10):  # 4 optimizers * 5 methods * 5 layers * 10 updates
            found, count = update_violations(layer, made, growth, x)
            violations += found
            replaced += count
        assert len(followed_tensors(layer, made)) == moving
    assert violations == []
    assert replaced > 0


@pytest.mark.parametrize("method", METHODS)
def test_wide_pointers_and_double(method, monkeypatch, device):
    monkeypatch.setattr("sparsekern.pattern.INT32_EDGES", 0)
    model = mlp(torch.float64).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    growth = METHODS[method](model, optimizer, interval=1, end=100)
    before = patterns(model)
    train_step(model, optimizer, growth, batch(model))
    assert not unchanged(model, before)
    for layer in growth.layers.values():
        assert layer.ccol_indices.dtype == torch.int64
        layer.pattern.validate()


def dense_scores(layer, x):
    """(rows, columns) gradient of sum(layer(x)^2) / 16 for all places."""
    weight = layer.to_dense().detach().requires_grad_()
    bias = layer.bias.detach()
    (nn.functional.linear(x, weight, bias).square().sum() / 16).backward()
    return weight.grad


@pytest.mark.parametrize("method", ["uniform", "rigl"])
def test_the_largest_gradients_grow(method):
    """With every inactive edge a candidate, GSE and RigL grow the same: the top k of the dense gradient."""
    torch.manual_seed(0)
    layer = SparseLinear(9, 8, density=0.4).double()
    x = torch.randn(16, 9, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    options = {"alpha": 0.4, "interval": 1, "end": 10**9}
    growth = GSE(layer, optimizer, "uniform", gamma=10, **options) if method == "uniform" else None
    growth = growth or RigL(layer, optimizer, **options)
    mask, weight = layer.pattern.to_mask(), layer.to_dense().detach()
    scores = dense_scores(layer, x).abs()
    scores[mask] = -1
    (update,) = train_step(layer, optimizer, growth, x)
    assert update.replaced == math.ceil(0.4 * layer.nnz)
    kept = torch.where(mask, weight.abs(), -1).flatten().topk(layer.nnz - update.replaced).indices
    grown = scores.flatten().topk(update.replaced).indices
    wanted = torch.zeros(72, dtype=torch.bool).index_fill(0, torch.cat([kept, grown]), True)
    assert torch.equal(layer.pattern.to_mask(), wanted.view(8, 9))


def test_ties_are_broken_by_position():
    values = torch.tensor([1.0, -2.0, 0.0, 2.0, -1.0, 2.0, -0.0, math.nan, math.inf])
    assert select_by_magnitude(values, 3, largest=True).tolist() == [1, 3, 8]
    assert select_by_magnitude(values, 5, largest=True).tolist() == [0, 1, 3, 5, 8]
    assert select_by_magnitude(values, 9, largest=True).tolist() == list(range(9))
    assert select_by_magnitude(values, 2, largest=False).tolist() == [2, 7]
    assert select_by_magnitude(values, 4, largest=False).tolist() == [0, 2, 6, 7]
    assert select_by_magnitude(values, 0, largest=True).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [True, False])
def test_selection_matches_a_stable_sort(dtype, largest, isa):
    torch.manual_seed(0)
    for size in (1, 2, 17, 1000):
        values = torch.randint(-5, 5, (size,)).to(dtype) / 4
        order = values.abs().argsort(stable=True, descending=largest)
        for count in {0, 1, size // 3, size}:
            found = select_by_magnitude(values, count, largest=largest)
            assert found.tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distinct", [1, 3, 2**40])
def test_selection_on_many_threads(dtype, distinct, isa):
    generator = torch.Generator().manual_seed(0)
    values = (torch.randint(-distinct, distinct + 1, (150_000,), generator=generator) / distinct).to(dtype)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        for largest in (True, False):
            order = values.abs().argsort(stable=True, descending=largest)
            for count in (1, 70_001, 150_000):
                found = select_by_magnitude(values, count, largest=largest)
                assert torch.equal(found, order[:count].sort().values)


@pytest.mark.parametrize("shape", [(300, 900), (20_000, 30)])
def test_large_replacements_on_many_threads(shape, isa):
    """The merged arrays, against those built anew from the edges; values move with them."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern.random(shape, 100_000, generator)
    before = pattern.clone()
    candidates = sample_uniform(pattern, 50_000, generator)
    pruned = torch.randperm(100_000, generator=generator)[:20_000].sort().values
    chosen = torch.randperm(50_000, generator=generator)[:20_000].sort().values
    mask = torch.ones(100_000, dtype=torch.bool).index_fill(0, pruned, False)
    rows, cols = (
        torch.cat([old[mask], new[chosen]]) for old, new in zip(before.edges(), candidates.edges(), strict=True)
    )
    expected = Pattern.from_coo(shape, rows, cols)
    values = torch.arange(1, 100_001, dtype=torch.float32)
    by_place = torch.zeros(shape).index_put(before.edges(), values * mask)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        pattern.copy_(before)
        topology = topology_of(pattern.device)
        gone = topology.mark_positions(pruned, 100_000)
        grown = pattern.exchange(gone, candidates, topology.mark_positions(chosen, 50_000), 20_000)
        pattern.validate()
        assert pattern.equal(expected)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            moved = values.to(dtype, copy=True)
            Move(gone, grown)(moved)
            assert torch.equal(moved, by_place[pattern.edges()].to(dtype))


def test_all_tied_scores_and_weights_are_defined():
    """Zero gradients and equal weights: the first places grow in stored order, the first edges go."""
    layer = SparseLinear(
        4, 3, bias=False, pattern=Pattern.from_mask(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]))
    )
    with torch.no_grad():
        layer.weight.fill_(0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    growth = GSE(layer, optimizer, "uniform", gamma=100, alpha=0.5, interval=1, end=10**9)
    train_step(layer, optimizer, growth, torch.zeros(2, 4))
    assert layer.to_dense().tolist() == [[0, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 0.5, 0]]
    assert layer.pattern.to_mask().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0]]


def test_full_and_frozen_and_excluded_layers_keep_their_edges():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "full": SparseLinear(6, 5, density=1.0),
            "frozen": SparseLinear(5, 6, density=0.5),
            "head": SparseLinear(6, 5, density=0.5),
            "body": SparseLinear(5, 4, density=0.5),
        }
    )
    model["frozen"].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for method in METHODS.values():
        before = patterns(model)
        growth = method(model, optimizer, interval=1, end=100, exclude=("he*",))
        assert list(growth.layers) == ["full", "body"]
        x = torch.randn(3, 6)
        for name in ("full", "frozen", "head", "body"):
            x = model[name](x)
        x.sum().backward()
        optimizer.step()
        full, body = growth.step()
        assert (full.candidates, full.replaced, full.skipped) == (0, 0, "")
        assert body.replaced > 0
        assert unchanged(model, {**before, "body": model["body"].pattern})


def test_a_layer_without_backward_is_left_alone():
    model = nn.ModuleList([SparseLinear(6, 5, density=0.5), SparseLinear(6, 5, density=0.5)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = GSE(model, optimizer, interval=1, end=100)
    before = patterns(model)
    with torch.no_grad():
        model[1](torch.randn(3, 6))
    model[0](torch.randn(3, 6)).sum().backward()
    optimizer.step()
    used, unused = growth.step()
    assert used.replaced > 0
    assert (unused.replaced, unused.skipped) == (0, "backward did not reach it")
    assert model[1].pattern.equal(before["1"])


# -- several calls of backward


def test_accumulated_gradients_equal_one_large_batch():
    whole, parts = mlp(torch.float64), mlp(torch.float64)
    x = batch(whole)
    for model, batches in ((whole, [x]), (parts, x.split(4))):
        optimizer = torch.optim.Adam(model.parameters())
        generator = torch.Generator().manual_seed(3)
        growth = GSE(model, optimizer, "uniform", alpha=0.3, interval=1, end=100, generator=generator)
        for part in batches:
            backward(model, part)
        optimizer.step()
        growth.step()
    assert unchanged(parts, patterns(whole))
    assert not unchanged(parts, patterns(mlp(torch.float64)))
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_candidates_of_guided_samplers_come_from_the_first_part_and_scores_from_all():
    model = SparseLinear(12, 10, bias=False, density=0.3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    growth = GSE(model, optimizer, "grabo", interval=1, end=100)
    first, second = torch.randn(2, 5, 12, dtype=torch.float64)
    backward(model, first)
    candidates = growth._proposals[""].candidates
    after_first = growth._proposals[""].scores.clone()
    backward(model, second)
    assert growth._proposals[""].candidates is candidates
    rows, cols = candidates.edges()
    wanted = torch.zeros(10, 12, dtype=torch.float64)
    for x in (first, second):
        weight = model.to_dense().detach().requires_grad_()
        ((x @ weight.t()).square().sum() / 16).backward()
        wanted += weight.grad
        if x is first:
            torch.testing.assert_close(after_first, wanted[rows, cols])
    torch.testing.assert_close(growth._proposals[""].scores, wanted[rows, cols])


def test_a_shared_layer_is_one_layer_whose_uses_add_up():
    shared = SparseLinear(6, 6, bias=False, density=0.3).double()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    assert list(find_sparse_layers(model)) == ["0"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    growth = GSE(model, optimizer, "uniform", gamma=100, interval=1, end=100)
    x = torch.randn(5, 6, dtype=torch.float64)
    model(x).sum().backward()
    weight = shared.to_dense().detach().requires_grad_()
    ((x @ weight.t()).tanh() @ weight.t()).sum().backward()
    proposal = growth._proposals["0"]
    torch.testing.assert_close(proposal.scores, weight.grad[proposal.candidates.edges()])


# -- steps that are not steps


def test_an_optimizer_in_the_place_of_the_growths_is_noticed():
    model = mlp()
    growth = GSE(model, torch.optim.SGD(model.parameters(), lr=0.01), interval=2, end=100)
    other = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(1200):
            other.step()
            growth.step()
    assert len(caught) == 1
    assert "has not stepped in 500 calls" in str(caught[0].message)
    assert growth.steps == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_a_scaler_is_not_a_step(fused):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    growth = GSE(model, optimizer, interval=2, end=100)
    before = patterns(model)

    def step(x, factor=1.0):
        optimizer.zero_grad()
        scaler.scale(model(x).square().sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        return growth.step()

    assert step(batch(model)) == []
    assert growth.armed
    for _ in range(2):
        assert step(batch(model), math.inf) == []  # and no warning: there was no step
        assert growth.steps == 1
        assert growth.armed
        assert unchanged(model, before)
        assert growth._proposals == {}
    assert all(update.replaced > 0 for update in step(batch(model)))
    assert growth.steps == 2
    assert not unchanged(model, before)


@pytest.mark.parametrize("sampler", ["uniform", "grabo", "graest"])
def test_updates_under_autocast(sampler):
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseConv2d(3, 8, 3, padding=1, density=0.2),
        nn.ReLU(),
        SparseConv2d(8, 6, 3, stride=2, groups=2, density=0.3),
        nn.Flatten(),
        SparseLinear(54, 12, density=0.2),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    growth = GSE(model, optimizer, sampler, interval=1, end=100)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(4, 3, 8, 8)).float().square().mean()
        loss.backward()
        optimizer.step()
        assert all(update.replaced == update.asked > 0 for update in growth.step())


def test_steps_of_an_optimizer_without_hooks_are_counted_by_calls():
    model = mlp()

    class Plain:
        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters)}]
            self.state = {}

    growth = GSE(model, Plain(model.parameters()), interval=2, end=100)
    for _ in range(3):
        backward(model, batch(model))
        growth.step()
    assert growth.steps == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["uniform", "grabo", "graest", "rigl"])
def test_gradients_that_are_not_finite_skip_the_layer_with_a_warning(method, bad):
    model = nn.ModuleDict({"poor": SparseLinear(6, 5, density=0.5), "good": SparseLinear(6, 5, density=0.5)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = METHODS[method](model, optimizer, interval=1, end=100)
    before = patterns(model)
    x = torch.randn(3, 6)
    poison = torch.ones(3, 5)
    poison[1] = bad
    ((model["poor"](x) * poison).sum() + model["good"](x).sum()).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="layer 'poor' keeps its edges in this update: .*not finite"):
        poor, good = growth.step()
    assert poor.replaced == 0
    assert "not finite" in poor.skipped
    assert good.replaced > 0
    assert model["poor"].pattern.equal(before["poor"])


# -- state


def flat(state, path=""):
    """{path: value} of nested state, tensors as lists, to be compared with ==."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: value for name, part in items for key, value in flat(part, f"{path}/{name}").items()}
    return {path: state.tolist() if isinstance(state, torch.Tensor) else state}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_are_bit_equal_wherever_they_stopped(method):
    def start():
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        options = {"interval": 3, "end": 20, "generator": torch.Generator().manual_seed(1)}
        return model, optimizer, METHODS[method](model, optimizer, **options)

    def saved(model, optimizer, growth):
        return copy.deepcopy([part.state_dict() for part in (model, optimizer, growth)])

    model, optimizer, growth = start()
    states = []
    for step in range(9):
        states.append(saved(model, optimizer, growth))
        train_step(model, optimizer, growth, batch(model, seed=step))
    end = saved(model, optimizer, growth)

    for first, state in enumerate(states):
        torch.manual_seed(99)
        model = nn.Sequential(SparseLinear(12, 20, density=0.2), nn.Tanh(), SparseLinear(20, 7, density=0.3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        growth = METHODS[method](model, optimizer, interval=3, end=20)
        for part, content in zip((model, optimizer, growth), state, strict=True):
            part.load_state_dict(content)
        for step in range(first, 9):
            train_step(model, optimizer, growth, batch(model, seed=step))
        assert flat(saved(model, optimizer, growth)) == flat(end)


def test_draws_differ_by_seed_update_and_layer():
    def run(seed):
        model = nn.ModuleList([SparseLinear(30, 30, density=0.2) for _ in range(2)])
        for layer in model:
            layer.set_pattern(Pattern.random((30, 30), 180, torch.Generator().manual_seed(0)), torch.zeros(180))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        growth = SET(model, optimizer, interval=1, end=10**9, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        growth.step()
        return [layer.pattern.clone() for layer in model]

    (a, b), (c, _) = run(1), run(2)
    assert a.equal(run(1)[0])
    assert not a.equal(b)
    assert not a.equal(c)


def test_state_of_another_run_is_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    state = GSE(model, optimizer, interval=3, end=20).state_dict()
    with pytest.raises(ValueError, match="the state's config has 3 for interval; expected 4"):
        GSE(model, optimizer, interval=4, end=20).load_state_dict(state)
    with pytest.raises(ValueError, match="'grabo' for sampler; expected 'uniform'"):
        GSE(model, optimizer, "uniform", interval=3, end=20).load_state_dict(state)
    with pytest.raises(ValueError, match="'GSE' for method; expected 'SET'"):
        SET(model, optimizer, interval=3, end=20).load_state_dict(state)
    with pytest.raises(ValueError, match=r"layers has \[7, 20, 42\] for 2; expected None"):
        GSE(model, optimizer, interval=3, end=20, exclude=["2"]).load_state_dict(state)


def test_copies_of_an_armed_model_are_not_watched():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    growth = GSE(model, optimizer, interval=1, end=20)
    twin = copy.deepcopy(model)
    backward(twin, batch(twin))
    assert growth._proposals == {}
    backward(model, batch(model))
    assert len(growth._proposals) == 2


def test_a_dropped_growth_leaves_nothing_running():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    growth = GSE(model, optimizer, interval=1, end=20)
    alive = weakref.ref(growth)
    del growth
    assert alive() is None
    backward(model, batch(model))
    optimizer.step()


# -- followers


def test_a_moving_average_follows():
    model = mlp()
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    growth = GSE(model, optimizer, interval=1, end=100, followers=[average])
    for step in range(4):
        backward(model, batch(model, seed=step))
        optimizer.step()
        average.update_parameters(model)
        before = {name: layer.to_dense().detach() for name, layer in find_sparse_layers(average).items()}
        old = patterns(model)
        growth.step()
        for name, layer in find_sparse_layers(average).items():
            layer.pattern.validate()
            assert layer.pattern.equal(growth.layers[name].pattern)
            assert not layer.pattern.equal(old[name])
            kept = layer.pattern.to_mask() & old[name].to_mask()
            assert torch.equal(layer.to_dense().detach(), before[name] * kept)
    find_sparse_layers(average)["0"].set_pattern(Pattern.random((20, 12), 48))
    backward(model, batch(model))
    optimizer.step()
    with pytest.raises(ValueError, match="follower's layer '0' has other edges"):
        growth.step()
    with pytest.raises(ValueError, match="follower's layer '0' is missing or has other edges"):
        GSE(model, optimizer, end=10, followers=[mlp(seed=1)])


# -- bad arguments


def test_bad_arguments():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for options, message in (
        ({"sampler": "random"}, "sampler is 'random'; expected one of uniform, grabo, graest"),
        ({"gamma": 0}, "gamma is 0; expected a positive number"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"alpha": 1.5}, r"alpha is 1.5; expected a number in \[0, 1\]"),
        ({"interval": 0}, "interval is 0; expected an integer of at least 1"),
        ({"interval": 2.5}, "interval is 2.5"),
        ({"end": -1}, "end is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            GSE(model, optimizer, **{"end": 10, **options})
    with pytest.raises(TypeError, match="exclude is the string"):
        GSE(model, optimizer, end=10, exclude="head")
    with pytest.raises(ValueError, match="weight of layer '2' is not among the optimizer's parameters"):
        GSE(model, torch.optim.SGD(model[0].parameters(), lr=0.1), end=10)
    GSE(model, torch.optim.SGD(model[0].parameters(), lr=0.1), end=10, exclude=["2"])
    with pytest.raises(NotImplementedError):
        Growth(model, optimizer, end=10).propose(model[0], None, None, 1, None)

    model[2] = SparseLinear(12, 20, density=0.2)
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="'0' and '2' hold the same weight"):
        GSE(model, torch.optim.SGD(model.parameters(), lr=0.1), end=10)


def test_a_model_without_sparse_layers_is_an_error():
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="no sparse layers"):
        GSE(model, torch.optim.SGD(model.parameters(), 0.1), end=10)
