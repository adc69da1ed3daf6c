import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparsekern
from sparsekern.masks import Masks, grasp, lottery_ticket, magnitude, random_mask, snip, synflow
from sparsekern.masks.lottery_ticket import pruning_rounds
from sparsekern.masks.select import best_masks
from sparsekern.models import MLP, ResNet, ViT
from sparsekern.nn import SparseLayer
from sparsekern.pattern import Pattern

MODELS = {
    "mlp": lambda: MLP(1, 4, 3, width=12, depth=2),
    "resnet": lambda: ResNet(1, 3, width=4, depth=8, shortcut="B"),
    "vit": lambda: ViT(1, 4, 3, width=12, depth=1, heads=2),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]()


def make_batches(count=2, size=6):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 1, 4, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def train(model, steps=3):
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for inputs, targets in itertools.islice(itertools.cycle(make_batches()), steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.to(dtype)), targets).backward()
        optimizer.step()


FINDERS = {
    "random": lambda model, density: random_mask(model, density, generator=torch.Generator().manual_seed(3)),
    "magnitude": magnitude,
    "snip": lambda model, density: snip(model, density, make_batches()),
    "grasp": lambda model, density: grasp(model, density, make_batches()),
    "synflow": lambda model, density: synflow(model, density, make_batches()[0][0], rounds=5),
    "lottery": lambda model, density: lottery_ticket(model, density, train, rounds=3),
}


def layer_weights(model):
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def flat(tensor):
    return tensor.detach().double().reshape(-1)


def expected_masks(scores, total):
    """Each layer's best, then the best of the rest, ties by layer and place: sorted in plain Python."""
    order = [(-value, layer, place) for layer, s in enumerate(scores) for place, value in enumerate(flat(s).tolist())]
    best = [min(entry for entry in order if entry[1] == layer) for layer in range(len(scores))]
    chosen = best + sorted(set(order) - set(best))[: total - len(best)]
    masks = [torch.zeros(s.shape, dtype=torch.bool) for s in scores]
    for _, layer, place in chosen:
        masks[layer].view(-1)[place] = True
    return masks


def assert_masks(masks, scores):
    """`masks` are those of the largest scores (name -> tensor of the weight's shape)."""
    expected = expected_masks(list(scores.values()), masks.nnz)
    assert list(masks) == list(scores)
    for (name, pattern), mask in zip(masks.items(), expected, strict=True):
        assert torch.equal(pattern.to_mask(), mask.view(pattern.shape)), name


# Selection


def select(scores, total):
    named = {str(index): (lambda s=s: s) for index, s in enumerate(scores)}
    return [mask.tolist() for _, mask in best_masks(named, total)]


def test_selection_by_hand():
    first, second = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([2.0, 2.5])
    assert select([first, second], 2) == [[True, False, False], [False, True]]
    assert select([first, second], 3) == [[True, False, False], [True, True]]
    assert select([first, second], 4) == [[True, False, True], [True, True]]
    assert select([first, second], 5) == [[True, True, True], [True, True]]


def test_a_layer_below_all_others_keeps_its_best():
    large, small = torch.tensor([7.0, 9.0, 8.0]), torch.tensor([1e-30, 2e-30, -5.0])
    assert select([large, small], 3) == [[False, True, True], [False, True, False]]


def test_ties_go_to_the_first_layer_and_place():
    ones = torch.ones(3)
    assert select([ones, ones], 2) == [[True, False, False], [True, False, False]]
    assert select([ones, ones], 4) == [[True, True, True], [True, False, False]]
    signed_zeros = torch.tensor([-0.0, 0.0, -0.0])
    assert select([signed_zeros, torch.tensor([1.0])], 3) == [[True, True, False], [True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["normal", "few values", "tiny", "mixed signs"])
def test_selection_is_that_of_a_sort(dtype, kind, monkeypatch):
    monkeypatch.setattr("sparsekern.masks.select._CHUNK", 7)
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (1, 20, 33, 8)]
    scores = {
        "normal": [s.abs() for s in scores],
        "few values": [(2 * s).round() for s in scores],
        "tiny": [s * 1e-7 for s in scores],
        "mixed signs": scores,
    }[kind]
    scores = [s.to(dtype) for s in scores]
    scores[-1] = scores[-1].view(2, 4).t()
    for total in range(4, 63):
        masks = select(scores, total)
        assert masks == [mask.view(-1).tolist() for mask in expected_masks(scores, total)]
        assert sum(map(sum, masks)) == total


def test_scores_of_two_dtypes_are_compared_exactly():
    above = torch.tensor([1.0 + 2**-40, 0.0], dtype=torch.float64)
    assert select([torch.tensor([5.0, 1.0]), torch.cat([above, above + 5])], 4) == [
        [True, False],
        [True, False, True, True],
    ]


def test_scores_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="layer '1' are not finite"):
        select([torch.ones(2), torch.tensor([1.0, math.nan])], 2)


# Every finder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", FINDERS)
def test_the_number_of_edges_is_exact(model, method):
    for density in (0.013, 0.1, 0.37) if method in ("random", "magnitude", "snip") else (0.07,):
        dense = make_model(model)
        density = max(density, 9 / sum(w.numel() for w in layer_weights(dense).values()))
        masks = FINDERS[method](dense, density)
        weights = layer_weights(dense)
        assert list(masks) == list(weights)
        assert masks.nnz == round(density * sum(w.numel() for w in weights.values()))
        assert masks.shapes == {name: tuple(weight.shape) for name, weight in weights.items()}
        assert masks.method == method
        assert all(pattern.nnz >= 1 for pattern in masks.values())
        for pattern in masks.values():
            pattern.validate()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", FINDERS)
def test_the_model_stays_as_it_is(model, method):
    dense = make_model(model)
    train(dense)  # gradients and statistics to be seen
    frozen = next(iter(layer_weights(dense).values()))
    frozen.requires_grad_(False)
    dense.eval()
    next(m for m in dense.modules() if not list(m.children())).train()
    parameters = {name: (p, p.data_ptr(), p.clone(), p.grad, p.requires_grad) for name, p in dense.named_parameters()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in dense.named_parameters()}
    buffers = {name: (b, b.clone()) for name, b in dense.named_buffers()}
    modes = [module.training for module in dense.modules()]
    classes = [type(module) for module in dense.modules()]
    rng = torch.get_rng_state()
    FINDERS[method](dense, 0.2)
    assert torch.equal(rng, torch.get_rng_state())
    assert [type(module) for module in dense.modules()] == classes
    assert [module.training for module in dense.modules()] == modes
    for name, p in dense.named_parameters():
        before, pointer, value, grad, required = parameters[name]
        assert p is before
        assert p.data_ptr() == pointer
        assert torch.equal(p, value)
        assert p.dtype == torch.float32
        assert p.requires_grad == required
        assert p.grad is grad
        assert grad is None or torch.equal(grad, grads[name])
    for name, b in dense.named_buffers():
        assert b is buffers[name][0]
        assert torch.equal(b, buffers[name][1])


@pytest.mark.parametrize("method", FINDERS)
def test_same_model_same_masks(method):
    first, second = (FINDERS[method](make_model("resnet"), 0.1) for _ in range(2))
    other = FINDERS[method](make_model("resnet", seed=1), 0.1)
    assert all(first[name].equal(second[name]) for name in first)
    if method != "random":
        assert not all(first[name].equal(other[name]) for name in first)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.b = self.a
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.b(self.a(images.flatten(1)).relu()).relu())


@pytest.mark.parametrize("method", FINDERS)
def test_shared_and_excluded_layers(method):
    torch.manual_seed(0)
    dense = Shared()
    masks = FINDERS[method](dense, 0.25)
    assert list(masks) == ["a", "head"]
    assert masks.nnz == round(0.25 * (16 * 16 + 3 * 16))
    sparse = copy.deepcopy(dense)
    masks.apply(sparse)
    assert sparse.a is sparse.b
    assert sparse.a.pattern.equal(masks["a"])
    finder = {"random": random_mask, "magnitude": magnitude}.get(method)
    if finder is not None:
        without = finder(dense, 0.25, exclude="head*")
        assert list(without) == ["a"]
        assert without.nnz == 64
        assert without.exclude == ("head*",)
    with pytest.raises(ValueError, match=r"0\.001 gives 0 nonzeros for 2 layers"):
        FINDERS[method](dense, 0.001)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        FINDERS[method](dense, 1.5)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        FINDERS[method](None, 0.5)


def test_densities_of_a_random_mask_are_the_distributions():
    dense = make_model("resnet")
    for distribution in ("erk", "er", "uniform"):
        table = sparsekern.sparsify(copy.deepcopy(dense), 0.1, distribution)
        masks = random_mask(dense, 0.1, distribution)
        assert {row.name: row.nnz for row in table.replaced} == {name: p.nnz for name, p in masks.items()}
    with torch.device("meta"):
        assert random_mask(ResNet(1, 3, width=4, depth=8), 0.1).nnz > 0
        with pytest.raises(ValueError, match="'stem' is on the meta device"):
            magnitude(ResNet(1, 3, width=4, depth=8), 0.1)


# Each finder's scores


def test_magnitude_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -0.9], [0.3, 0.2]]))
        model[1].weight.copy_(torch.tensor([[-0.4, 0.05]]))
    masks = magnitude(model, 0.5)
    assert masks["0"].to_mask().tolist() == [[False, True], [True, False]]
    assert masks["1"].to_mask().tolist() == [[True, False]]


def test_snip_by_hand():
    pair = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        pair.weight.copy_(torch.tensor([[0.5, 2.0]]))
    wide = nn.Sequential(pair, nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        wide[1].weight.copy_(torch.tensor([[1.0], [-3.0]]))
    # x = (4, 0.5), hidden 3, outputs 3 and -9, loss y0 + y1 / 9. |w g| of the first layer: 0.5 * 4 * (1 - 3/9) and
    # 2 * 0.5 * (1 - 3/9); of the second: 1 * 3 * 1 and 3 * 3 / 9.
    masks = snip(wide, 0.75, [(torch.tensor([[4.0, 0.5]]), None)], lambda y, _: (y * torch.tensor([1.0, 1 / 9])).sum())
    assert masks["0"].to_mask().tolist() == [[True, False]]
    assert masks["1"].to_mask().tolist() == [[True], [True]]


@pytest.mark.parametrize("model", MODELS)
def test_snip_scores_are_the_derivatives_by_a_mask(model):
    dense = make_model(model)
    weights = layer_weights(dense)
    multipliers = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    masked = {f"{name}.weight": weight.detach() * multipliers[name] for name, weight in weights.items()}
    buffers = {name: buffer.clone() for name, buffer in dense.named_buffers()}
    total = sum(
        F.cross_entropy(torch.func.functional_call(dense, {**masked, **buffers}, (inputs,)), targets)
        for inputs, targets in make_batches()
    )
    total.backward()
    scores = {name: multiplier.grad.abs() for name, multiplier in multipliers.items()}
    masks = snip(dense, 0.1, make_batches())
    threshold_gap(scores, masks)


def threshold_gap(scores, masks):
    """What is in has larger scores than what is out, to rounding, apart from each layer's best."""
    inside, outside, largest = [], [], 0.0
    for name, score in scores.items():
        mask = masks[name].to_mask().view(score.shape)
        best = torch.zeros(score.numel(), dtype=torch.bool)
        best[int(score.argmax())] = True
        inside.append(score[mask & ~best.view(score.shape)])
        outside.append(score[~mask])
        largest = max(largest, float(score.abs().max()))
        assert mask.view(-1)[int(score.argmax())] or float(score.max() - score[mask].max()) < 1e-5 * largest
    assert float(torch.cat(inside).min()) > float(torch.cat(outside).max()) - 1e-5 * largest
    assert masks.nnz == sum(int(p.to_mask().sum()) for p in masks.values())


def tiny_network():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    generator = torch.Generator().manual_seed(7)
    batches = [
        (torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.randint(3, (5,), generator=generator))
        for _ in range(2)
    ]
    return model, batches


def test_grasp_scores_are_those_of_the_explicit_hessian():
    model, batches = tiny_network()
    shapes = [model[0].weight.shape, model[2].weight.shape]
    theta = torch.cat([model[0].weight.detach().view(-1), model[2].weight.detach().view(-1)])

    def loss(vector):
        first, second = (part.view(shape) for part, shape in zip(vector.split([12, 12]), shapes, strict=True))
        values = [
            F.cross_entropy(F.linear(torch.tanh(F.linear(x, first, model[0].bias.detach())), second) / 200, y)
            for x, y in batches
        ]
        return sum(values) / len(values)

    hessian = torch.autograd.functional.hessian(loss, theta)
    gradient = torch.autograd.functional.jacobian(loss, theta)
    removal = -theta * (hessian @ gradient)
    for density in (0.15, 0.25, 0.5, 0.8):
        masks = grasp(model, density, batches)
        kept = [(-part).view(shape) for part, shape in zip(removal.split([12, 12]), shapes, strict=True)]
        assert_masks(masks, {"0": kept[0], "2": kept[1]})


def test_grasp_by_hand():
    # L = y^2 / 2, y = w1 x1 + w2 x2, T = 1: g = y x, H = x x^T, H g = y |x|^2 x, S = -w_i x_i y |x|^2.
    # x = (1, 2), w = (3, -1): y = 1, S = (-15, 10): w1 stays, as its removal takes from the gradient most.
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.0]]))
    batch = [(torch.tensor([[1.0, 2.0]]), None)]
    assert grasp(model, 0.5, batch, lambda y, _: (y**2).sum() / 2, temperature=1).get("0").to_mask().tolist() == [
        [True, False]
    ]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -3.0]]))  # y = -5: S = -w_i x_i y |x|^2 = (25, -150)
    assert grasp(model, 0.5, batch, lambda y, _: (y**2).sum() / 2, temperature=1)["0"].to_mask().tolist() == [
        [False, True]
    ]


@pytest.mark.parametrize("model", MODELS)
def test_grasp_through_fused_operators_is_that_of_finite_differences(model):
    dense = make_model(model).double()
    batches = [(inputs.double(), targets) for inputs, targets in make_batches(1)]
    weights = layer_weights(dense)

    def gradient(moved):
        other = copy.deepcopy(dense)
        with torch.no_grad():
            for name, weight in layer_weights(other).items():
                weight.copy_(moved[name])
        (inputs, targets) = batches[0]
        loss = F.cross_entropy(other(inputs) / 200, targets)
        return dict(zip(weights, torch.autograd.grad(loss, list(layer_weights(other).values())), strict=True))

    values = {name: weight.detach() for name, weight in weights.items()}
    g = gradient(values)
    length = math.sqrt(sum(float((part**2).sum()) for part in g.values()))
    step = 1e-6
    ahead, behind = (
        gradient({name: values[name] + sign * step / length * g[name] for name in values}) for sign in (1, -1)
    )
    scores = {name: values[name] * (ahead[name] - behind[name]) * length / (2 * step) for name in values}
    threshold_gap(scores, grasp(dense, 0.1, batches))


def reference_synflow(model, density, shape, rounds, keep_best):
    """Algorithm 1 as it is written, on whole tensors: masks by layer, ties by sort; `keep_best` as the library."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.abs_()
    weights = layer_weights(model)
    original = {name: weight.detach().clone() for name, weight in weights.items()}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    size = sum(weight.numel() for weight in weights.values())
    for number in range(1, rounds + 1):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(original[name] * masks[name])
        flow = model(torch.ones(1, *shape, dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(flow, list(weights.values()))
        scores = [
            (g * w).abs().masked_fill(~m, -1)
            for g, w, m in zip(gradients, weights.values(), masks.values(), strict=True)
        ]
        total = round(density ** (number / rounds) * size)
        if keep_best:
            found = expected_masks([score.detach() for score in scores], total)
        else:
            together = torch.cat([score.detach().view(-1) for score in scores])
            kept = torch.zeros(size, dtype=torch.bool)
            kept[torch.sort(together, descending=True, stable=True).indices[:total]] = True
            found = [
                part.view(w.shape)
                for part, w in zip(kept.split([w.numel() for w in weights.values()]), weights.values(), strict=True)
            ]
        masks = dict(zip(weights, found, strict=True))
    return masks


@pytest.mark.parametrize("model", MODELS)
def test_synflow_is_the_plain_loop(model):
    dense = make_model(model)
    train(dense)  # running statistics of both signs
    masks = synflow(dense, 0.1, torch.empty(7, 1, 4, 4), rounds=4)
    expected = reference_synflow(dense, 0.1, (1, 4, 4), 4, keep_best=True)
    for name, pattern in masks.items():
        assert torch.equal(pattern.to_mask(), expected[name].view(pattern.shape)), name


def test_synflow_by_hand():
    # Flow through 2 -> 2 -> 1, |W1| = [[1, 2], [3, 4]], |W2| = [2, 1]: R = 2*(1+2) + 1*(3+4).
    # W1's scores 2, 4, 3, 4; W2's 6, 7. Two of six stay: each layer's best; of the equal 4s the first.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        model[1].weight.copy_(torch.tensor([[-2.0, 1.0]]))
    at_once = synflow(model, 1 / 3, torch.zeros(1, 2), rounds=1)
    assert at_once["0"].to_mask().tolist() == [[False, True], [False, False]]
    assert at_once["1"].to_mask().tolist() == [[False, True]]
    # In rounds, 5 of 6 stay (W1's 2 goes), then scores are 4, 3, 4 and 4, 7, and so on down to one path.
    slowly = synflow(model, 1 / 3, torch.zeros(1, 2), rounds=4)
    assert slowly["0"].to_mask().tolist() == [[False, False], [False, True]]
    assert slowly["1"].to_mask().tolist() == [[False, True]]


def test_what_synflow_has_taken_out_stays_out():
    # Twelve units of weak inputs and one of strong ones. The first of two rounds leaves 15 of 39: the strong unit's
    # three and the weak ones' second weights, whose flow is gone with their inputs: 0, as is that of the inputs.
    model = nn.Sequential(nn.Linear(2, 13, bias=False), nn.Linear(13, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)[12] = 10.0
        model[1].weight.fill_(1.0)
    masks = synflow(model, 6 / 39, torch.empty(1, 2), rounds=2)
    assert masks["0"].to_mask().nonzero().tolist() == [[12, 0], [12, 1]]
    assert masks["1"].to_mask().nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 12]]


def test_synflow_collapses_no_layer_at_99_percent():
    torch.manual_seed(0)
    dense = ResNet(1, 10, width=16, depth=8)
    masks = synflow(dense, 0.01, torch.empty(1, 1, 8, 8))
    # Not by the library's rule alone: in the plain loop, without it, no layer is empty either.
    plain = reference_synflow(dense, 0.01, (1, 8, 8), 100, keep_best=False)
    assert all(mask.any() for mask in plain.values())
    for name, pattern in masks.items():
        assert pattern.nnz >= 1
        assert torch.equal(pattern.to_mask(), plain[name].view(pattern.shape)), name
    assert masks.nnz == round(0.01 * masks.size)


def test_snip_at_999_permille_keeps_each_layers_best():
    torch.manual_seed(0)
    dense = ResNet(1, 10, width=16, depth=14)
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
    masks = snip(dense, 0.001, [batch])
    assert masks.nnz == round(0.001 * masks.size)
    copied = copy.deepcopy(dense)
    F.cross_entropy(copied(batch[0]), batch[1]).backward()
    scores = {name: (weight * weight.grad).abs().detach() for name, weight in layer_weights(copied).items()}
    threshold_gap(scores, masks)
    above = torch.cat([score.view(-1) for score in scores.values()]).sort(descending=True).values[masks.nnz - 1]
    assert any(score.max() < above for score in scores.values())  # some layer would have been left empty


def test_dropout_and_attention_of_torch():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(32, 3))
    generator = torch.Generator().manual_seed(2)
    batches = [(torch.randn(5, 4, 8, generator=generator), torch.randint(3, (5,), generator=generator))]
    rng = torch.get_rng_state()
    for masks in (snip(model, 0.2, batches), grasp(model, 0.2, batches), synflow(model, 0.2, batches[0][0], rounds=2)):
        assert torch.equal(rng, torch.get_rng_state())
        assert masks.nnz == round(0.2 * masks.size)


def test_inputs_as_keywords_and_tuples():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x, y):
            return self.a(x) * self.b(y)

    torch.manual_seed(0)
    model, x, y, targets = Two(), torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    by_place, by_name = (snip(model, 0.5, [(inputs, targets)]) for inputs in ((x, y), {"y": y, "x": x}))
    assert all(by_place[name].equal(by_name[name]) for name in by_place)
    assert synflow(model, 0.5, (x, y)).nnz == synflow(model, 0.5, {"y": y, "x": x}).nnz == 6


class Sizes(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operator made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
def test_layers_are_never_put_together(method):
    torch.manual_seed(0)
    side = 270  # whose square is above the number of bins that scores are counted in
    model = nn.Sequential(*(nn.Linear(side, side) for _ in range(3)))
    batches = [(torch.randn(2, side), torch.tensor([0, 1]))]
    with Sizes() as sizes:
        {
            "magnitude": lambda: magnitude(model, 0.5),
            "snip": lambda: snip(model, 0.5, batches),
            "grasp": lambda: grasp(model, 0.5, batches),
            "synflow": lambda: synflow(model, 0.5, batches[0][0], rounds=2),
        }[method]()
    assert sizes.largest == side * side


# Lottery tickets


def reference_ticket(model, totals):
    """Masked dense training: weights and gradients multiplied by masks."""
    masks = {name: torch.ones_like(weight) for name, weight in layer_weights(model).items()}
    for total in totals:
        trained = copy.deepcopy(model)
        weights = layer_weights(trained)
        for name, weight in weights.items():
            weight.data.mul_(masks[name])
            weight.register_hook(lambda grad, mask=masks[name]: grad * mask)
        train(trained)
        scores = [weight.detach().abs().masked_fill(masks[name] == 0, -1) for name, weight in weights.items()]
        masks = {n: mask.double() for n, mask in zip(weights, expected_masks(scores, total), strict=True)}
    return masks


@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_tickets_are_those_of_masked_dense_training(model):
    dense = make_model(model).double()
    size = sum(weight.numel() for weight in layer_weights(dense).values())
    seen = []

    def watched(each):
        layers = [module for module in each.modules() if isinstance(module, SparseLayer)]
        seen.append(sum(layer.nnz for layer in layers) if layers else size)
        train(each)

    masks = lottery_ticket(dense, 0.3, watched, rounds=3)
    totals = [round(0.3 ** (number / 3) * size) for number in (1, 2, 3)]
    assert seen == [size, *totals[:2]]
    expected = reference_ticket(dense, totals)
    for name, pattern in masks.items():
        assert torch.equal(pattern.to_mask(), expected[name].view(pattern.shape) > 0), name
    ticket = copy.deepcopy(dense)
    masks.apply(ticket)
    for name, weight in layer_weights(dense).items():
        layer = ticket.get_submodule(name)
        assert torch.equal(layer.to_dense(), weight * expected[name])
        assert layer.bias is None or torch.equal(layer.bias, dense.get_submodule(name).bias)


def test_a_ticket_is_rewound_to_the_end_of_the_warm_up():
    dense = make_model("resnet")
    starts = []

    def train_and_note(each):
        starts.append(each.head.bias.detach().clone())
        train(each)

    masks = lottery_ticket(dense, 0.5, train_and_note, warm_up=lambda each: train(each, 2), rounds=2)
    warm = copy.deepcopy(dense)
    train(warm, 2)
    assert not torch.equal(warm.head.bias, dense.head.bias)
    assert len(starts) == 2
    assert all(torch.equal(start, warm.head.bias) for start in starts)
    ticket = copy.deepcopy(dense)
    masks.apply(ticket)
    assert torch.equal(ticket.norm.running_mean, warm.norm.running_mean)
    assert torch.equal(ticket.norm.weight, warm.norm.weight)
    assert torch.equal(ticket.stem.to_dense(), warm.stem.weight * masks["stem"].to_mask().view_as(warm.stem.weight))


def test_rounds_of_the_papers_share():
    assert pruning_rounds(1.0, 0.2) == 1
    assert pruning_rounds(0.8, 0.2) == 1
    assert pruning_rounds(0.8**5, 0.2) == 5
    assert pruning_rounds(0.02, 0.2) == 18
    assert pruning_rounds(0.5, 0.5) == 1
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="share must be above 0 and below 1"):
            lottery_ticket(make_model("mlp"), 0.5, train, share=share)


# Applying


def test_apply_replaces_the_layers_as_sparsify_does():
    dense = make_model("resnet")
    masks = magnitude(dense, 0.1, exclude="head")
    kept, drawn = copy.deepcopy(dense), copy.deepcopy(dense)
    table = masks.apply(kept, keep_weights=True)
    assert {row.name: row.nnz for row in table.replaced} == {name: p.nnz for name, p in masks.items()}
    assert {row.name: row.reason for row in table.kept} == {"head": "is not in the masks"}
    for name, pattern in masks.items():
        weight = dense.get_submodule(name).weight
        layer = kept.get_submodule(name)
        assert layer.pattern.equal(pattern)
        assert layer.row_indices.data_ptr() != pattern.row_indices.data_ptr()
        assert torch.equal(layer.to_dense(), weight * pattern.to_mask().view_as(weight))
    masks.apply(drawn, generator=torch.Generator().manual_seed(1))
    again = copy.deepcopy(dense)
    masks.apply(again, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn.stem.weight, again.stem.weight)
    assert not torch.equal(drawn.stem.weight, kept.stem.weight)
    assert torch.equal(drawn.head.weight, dense.head.weight)


@pytest.mark.parametrize("model", MODELS)
def test_values_are_those_of_the_model_they_were_taken_from(model):
    dense, other = make_model(model), make_model(model, seed=9)
    train(dense)
    masks = magnitude(dense, 0.2).with_values(dense)
    masks.apply(other)
    direct = copy.deepcopy(dense)
    masks.apply(direct, keep_weights=True)
    state, expected = other.state_dict(), direct.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    train(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model, "head", nn.Identity()), "a layer 'head', but the model has only"),
        (lambda model: setattr(model, "head", nn.Linear(16, 4)), r"'head' has a weight of shape \(3, 16\).*\(4, 16\)"),
        (
            lambda model: nn.utils.parametrizations.weight_norm(model.head),
            "a layer 'head', which cannot be made sparse: it has a computed weight",
        ),
        (lambda model: model.to("meta"), "'stem' is on the meta device"),
    ],
)
def test_masks_of_another_model_are_refused(change, message):
    dense = make_model("resnet")
    masks = magnitude(dense, 0.1)
    change(dense)
    with pytest.raises(ValueError, match=message):
        masks.apply(dense)
    assert not any(isinstance(module, SparseLayer) for module in dense.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), "have no 'norm.weight'"),
        (lambda state: state.update(x=torch.zeros(1)), "have 'x', which the model has not"),
        (
            lambda state: state.update({"stem.weight": torch.zeros(3)}),
            r"'stem.weight' of shape \(3,\); the model needs",
        ),
    ],
)
def test_values_of_another_model_are_refused(change, message):
    dense = make_model("resnet")
    masks = magnitude(dense, 0.1).with_values(dense)
    change(masks.state)
    with pytest.raises(ValueError, match=message):
        masks.apply(dense)
    assert not any(isinstance(module, SparseLayer) for module in dense.modules())


def test_two_names_of_one_layer_are_refused():
    pattern = Pattern.random((16, 16), 5)
    masks = Masks({"a": pattern, "b": pattern}, {"a": (16, 16), "b": (16, 16)})
    with pytest.raises(ValueError, match="'a' and 'b' are one layer"):
        masks.apply(Shared())


def make_masks(**changes):
    arguments = {"patterns": {"a": Pattern.random((4, 6), 5)}, "shapes": {"a": (4, 6)}} | changes
    return Masks(arguments.pop("patterns"), arguments.pop("shapes"), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patterns": {}, "shapes": {}}, "must be of the same layers"),
        ({"shapes": {"b": (4, 6)}}, r"must be of the same layers, got \['a'\] and \['b'\]"),
        ({"shapes": {"a": (6, 4)}}, r"shape of 'a' is \(6, 4\), but its pattern's matrix is \(4, 6\)"),
        ({"patterns": {"a": Pattern.random((4, 6), 0)}}, "pattern of 'a' has no edges"),
        ({"density": 0.9}, "density is 0.9, which gives 22 of 24 weights, but the patterns have 5 edges"),
    ],
)
def test_masks_that_do_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        make_masks(**changes)


def test_masks_say_what_they_are():
    masks = make_masks(method="snip", density=0.2)
    assert repr(masks) == "Masks(snip, layers=1, nnz=5, density=0.2)"
    assert (masks.nnz, masks.size, len(masks), list(masks)) == (5, 24, 1, ["a"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: snip(m, 0.5, []), ValueError, "without a batch"),
        (
            lambda m: snip(m, 0.5, make_batches()[0]),
            TypeError,
            "got a Tensor as a batch; a single batch goes into a list",
        ),
        (lambda m: grasp(m, 0.5, make_batches(), temperature=0), ValueError, "temperature must be above 0, got 0"),
        (
            lambda m: synflow(m, 0.5, torch.empty(1, 1, 4, 4), rounds=0),
            ValueError,
            "rounds must be .* at least 1, got 0",
        ),
        (lambda m: synflow(m, 0.5, torch.tensor(1.0)), ValueError, r"example must have a sample.*got shape \(\)"),
        (lambda m: lottery_ticket(m, 0.5, train, rounds=1.5), ValueError, "rounds must be a whole number"),
        (
            lambda m: snip(m, 0.5, [(torch.full((2, 1, 4, 4), math.inf), torch.tensor([0, 1]))]),
            ValueError,
            "not finite",
        ),
        (lambda m: magnitude(m, 0.5, exclude="foot*"), ValueError, r"'foot\*' matches no"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(make_model("mlp"))
