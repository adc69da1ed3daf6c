"""sparsify: what is replaced, what stays and why, exact totals, and everything that carries over."""

import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear
from sparsekern.pattern import Pattern
from sparsekern.sparsify import replace_layers, sparsify, survey_layers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 3, stride=2, bias=False),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(16, 16, 3, padding="same", groups=4, padding_mode="reflect"), nn.ReLU()),
        )
        self.mixer = nn.Linear(16, 16)
        self.mixer_again = self.mixer
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.body(self.stem(x)).mean((2, 3))
        return self.head(self.mixer_again(self.mixer(x)))


def named(table):
    return {row.name: row for row in table.rows}


@pytest.mark.parametrize("distribution", ["er", "erk", "uniform"])
@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
def test_every_layer_is_replaced_and_the_total_is_exact(distribution, density, default_device):
    model = Net()
    sizes = {name: m.weight.numel() for name, m in model.named_modules() if hasattr(m, "weight")}
    table = sparsify(model, density, distribution)
    assert not [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert [row.name for row in table.rows] == list(sizes)
    assert table.nnz == round(density * sum(sizes.values()))
    assert table.nnz == sum(m.weight.numel() for m in model.modules() if isinstance(m, SparseLayer))
    for row in table.rows:
        layer = model.get_submodule(row.name)
        assert (row.nnz, row.size) == (layer.nnz, sizes[row.name])
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_the_sparse_convolution_has_the_dense_one_s_geometry(default_device):
    model = nn.Sequential(nn.Conv2d(4, 8, (3, 5), (2, 1), (1, 2), (1, 2), 2, False, "circular"))
    dense = model[0]
    sparsify(model, 1.0, keep_weights=True)
    x = torch.randn(3, 4, 11, 13)
    torch.testing.assert_close(model(x), dense(x))


def test_a_shared_module_is_replaced_once_and_stays_shared():
    model = Net()
    table = sparsify(model, 0.3)
    assert model.mixer is model.mixer_again
    assert named(table)["mixer"].names == ("mixer", "mixer_again")
    assert len([row for row in table.rows if row.size == 256]) == 1
    assert "mixer = mixer_again" in str(table)


def test_shared_containers_stay_shared():
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.ModuleList([block, block])
    sparsify(model, 0.5)
    assert model[0] is model[1]
    assert isinstance(model[1][0], SparseLinear)


def test_exclude_matches_names_patterns_and_containers():
    for exclude, dense in [
        ("head*", {"head"}),
        (("stem", "body.2"), {"stem", "body.2.0"}),
        (["*0"], {"body.0", "body.2.0"}),
        ("mixer_again", {"mixer"}),
    ]:
        model = Net()
        total = sum(m.weight.numel() for n, m in model.named_modules() if hasattr(m, "weight") and n not in dense)
        table = sparsify(model, 0.25, exclude=exclude)
        assert {row.name for row in table.kept} == dense
        assert all(row.reason.startswith("excluded by") and row.density == 1 for row in table.kept)
        assert table.nnz == round(0.25 * total)
        assert not isinstance(model.get_submodule(dense.pop()), SparseLayer)


def test_an_exclude_pattern_that_matches_nothing_is_an_error_and_changes_nothing():
    model = Net()
    with pytest.raises(ValueError, match=r"'tail\*' matches no .*stem, body.0.*head"):
        sparsify(model, exclude=("head", "tail*"))
    assert isinstance(model.stem, nn.Conv2d)


def test_attention_counts_as_its_linear_layers():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    table = sparsify(model, 0.5, "uniform")
    rows = named(table)
    assert [row.name for row in table.rows] == [
        "0.self_attn.in_proj",
        "0.self_attn.out_proj",
        "0.linear1",
        "0.linear2",
    ]
    assert rows["0.self_attn.in_proj"].shape == (48, 16)
    assert rows["0.self_attn.in_proj"].nnz == model[0].self_attn.in_proj.nnz == 384
    assert table.nnz == sum(m.nnz for m in model.modules() if isinstance(m, SparseLayer))
    assert all(row.reason is None for row in table.rows)


def test_attention_to_other_tokens_has_separate_projections(default_device):
    decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    rows = named(sparsify(decoder, 0.5))
    assert [name for name in rows if name.startswith("multihead_attn")] == [
        f"multihead_attn.{part}_proj" for part in ("q", "k", "v", "out")
    ]
    assert decoder.multihead_attn.in_proj is None
    assert decoder.self_attn.in_proj is not None
    decoder(torch.randn(2, 5, 16), torch.randn(2, 7, 16)).sum().backward()


@pytest.mark.parametrize("exclude", ["attention", "attention.out_proj", "*.in_proj"])
def test_an_excluded_projection_keeps_its_attention_dense(exclude):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 8)})
    rows = named(sparsify(model, 0.5, exclude=exclude))
    assert isinstance(model["attention"], nn.MultiheadAttention)
    assert "excluded by" in rows["attention.in_proj_weight"].reason
    assert rows["attention.out_proj"].reason is not None
    assert rows["head"].reason is None


def test_attention_that_stays_dense_says_why():
    class Special(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict(
        {name: nn.MultiheadAttention(8, 2) for name in ("tied", "tied_too", "hooked", "parametrized")}
    )
    model["special"] = Special(8, 2)
    model["plain"] = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)
    model["tied"].in_proj_weight = model["tied_too"].in_proj_weight
    model["hooked"].register_state_dict_pre_hook(lambda *_: None)
    nn.utils.parametrizations.orthogonal(model["parametrized"].out_proj)
    table = sparsify(model, 0.5)
    rows = named(table)
    assert {row.name.split(".")[0] for row in table.replaced} == {"plain"}
    assert len(table.replaced) == 4
    assert rows["plain.bias_k"].reason == "is no nn.Linear or nn.Conv2d"
    reasons = {"tied": "shares its in_proj_weight", "hooked": "state_dict hooks", "special": "subclass"}
    for name, reason in {**reasons, "parametrized": "computed weight"}.items():
        assert reason in rows[f"{name}.in_proj_weight"].reason


@pytest.mark.parametrize("padded", [False, True])
def test_a_transformer_encoder_works_in_eval_mode(padded):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2)
    sparsify(encoder, 1.0, keep_weights=True)
    x = torch.randn(3, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5]) if padded else None
    in_training = encoder(x, src_key_padding_mask=mask)
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, src_key_padding_mask=mask), in_training)


def test_tied_weights_stay_dense():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "hidden": nn.Linear(8, 8), "head": nn.Linear(8, 20)})
    model["head"].weight = model["embed"].weight
    rows = named(sparsify(model, 0.5))
    assert "shares its weight: embed.weight = head.weight" in rows["head"].reason
    assert model["head"].weight is model["embed"].weight
    assert rows["hidden"].nnz == 32


def test_a_shared_bias_keeps_its_layers_dense():
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
    model[1].bias = model[0].bias
    assert {row.name for row in sparsify(model, 0.5).kept} == {"0", "1"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_stay_dense():
    model = nn.ModuleDict(
        {
            "parametrized": nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)),
            "normed": nn.utils.weight_norm(nn.Conv2d(4, 4, 3)),
            "pruned": nn.Linear(8, 8),
            "plain": nn.Linear(8, 8),
        }
    )
    prune.random_unstructured(model["pruned"], "weight", 0.5)
    table = sparsify(model, 0.5)
    assert [row.name for row in table.replaced] == ["plain"]
    assert {row.name for row in table.kept} == {"parametrized", "normed", "pruned"}
    assert all("computed weight" in row.reason for row in table.kept)
    model["normed"](torch.randn(1, 4, 5, 5)).sum().backward()


def test_other_layers_that_stay_dense():
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "lazy": nn.LazyLinear(8),
            "special": Special(8, 8),
            "complex": nn.Linear(8, 8, dtype=torch.complex64),
            "conv1d": nn.Conv1d(4, 4, 3),
            "hooked": nn.Linear(8, 8),
            "plain": nn.Linear(8, 8),
        }
    )
    model["hooked"].register_state_dict_pre_hook(lambda *_: None)
    reasons = {row.names[0]: row.reason for row in sparsify(model, 0.5).rows}
    assert reasons.pop("plain") is None
    expected = {
        "lazy": "lazy",
        "special": "subclass",
        "complex": "complex64",
        "conv1d.weight": "no nn.Linear",
        "hooked": "state_dict hooks",
    }
    assert reasons.keys() == expected.keys()
    assert all(word in reasons[name] for name, word in expected.items())


def test_layers_that_are_sparse_already_stay_and_do_not_count():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    sparsify(model, 0.5, exclude="1")
    first = model[0]
    table = sparsify(model, 0.2)
    assert model[0] is first
    assert named(table)["0"].reason == "is sparse already"
    assert (table.nnz, table.size, first.nnz) == (20, 100, 50)


def test_what_carries_over():
    model = nn.Sequential(nn.Linear(6, 4, dtype=torch.float64), nn.Conv2d(2, 4, 3, bias=False)).eval()
    model[0].weight.requires_grad_(False)
    sparsify(model, 0.5)
    linear, conv = model
    assert not linear.training
    assert not conv.training
    assert linear.weight.dtype == linear.bias.dtype == torch.float64
    assert not linear.weight.requires_grad
    assert linear.bias.requires_grad
    assert conv.bias is None


def test_hooks_carry_over_and_their_handles_still_remove_them():
    model = nn.Sequential(nn.Linear(6, 4))
    calls = []
    handles = [
        model[0].register_forward_pre_hook(lambda module, args: calls.append("before")),
        model[0].register_forward_hook(lambda module, args, output: calls.append(type(module).__name__)),
        model[0].register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward")),
        model[0].register_forward_hook(lambda module, args, kwargs, output: calls.append("keywords"), with_kwargs=True),
    ]
    sparsify(model, 0.5)
    model(torch.randn(2, 6, requires_grad=True)).sum().backward()
    assert calls == ["before", "SparseLinear", "keywords", "backward"]
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 6)).sum().backward()
    assert len(calls) == 4


def test_keep_weights_keeps_the_largest_and_the_bias():
    model = nn.Sequential(nn.Linear(20, 10), nn.Conv2d(3, 5, 3))
    dense = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in model]
    table = sparsify(model, 0.3, keep_weights=True)
    for layer, (weight, bias), row in zip(model, dense, table.rows, strict=True):
        kept = layer.to_dense().detach().view(weight.shape)
        smallest = weight.abs().flatten().sort(descending=True).values[row.nnz - 1]
        assert torch.equal(kept, torch.where(weight.abs() >= smallest, weight, 0.0))
        assert torch.equal(layer.bias, bias)


def test_the_same_generator_gives_the_same_network():
    states = []
    for seed in (3, 3, 4):
        model = nn.Sequential(nn.Linear(20, 30), nn.Conv2d(3, 4, 3))
        sparsify(model, 0.2, generator=torch.Generator().manual_seed(seed))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["0.row_indices"], states[2]["0.row_indices"])


def test_a_model_on_the_meta_device_stays_there():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000), nn.Conv2d(64, 64, 3))
    table = sparsify(model, 1e-4, "er")
    assert all(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers()))
    assert table.nnz == round(1e-4 * (10**10 + 36864)) == sum(layer.nnz for layer in model)


def test_the_result_trains_saves_and_pickles():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    sparsify(model, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    x = torch.randn(64, 8)
    losses = []
    for _ in range(40):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_table_texts():
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    table = sparsify(model, 0.25, "uniform", exclude="1")
    assert (table.size, table.nnz, table.density) == (200, 50, 0.25)
    lines = str(table).splitlines()
    assert lines[1].split() == ["0", "Linear", "20", "x", "10", "0.2500", "50"]
    assert lines[2].endswith("excluded by '1'")
    assert lines[3].split()[-3:] == ["200", "0.2500", "50"]
    markdown = table.markdown().splitlines()
    assert markdown[2] == "| 0 | Linear | 20 x 10 | 0.2500 | 50 |  |"
    assert len({line.count("|") for line in markdown}) == 1


def test_bad_arguments_are_named_and_change_nothing():
    model = nn.Sequential(nn.Linear(10, 10))
    for error, arguments, message in [
        (ValueError, {"density": 0.0}, r"density must be in \(0, 1\]"),
        (ValueError, {"density": 1.5}, "got 1.5"),
        (ValueError, {"density": 1e-9}, "one each"),
        (ValueError, {"distribution": "normal"}, "er, erk, uniform, got 'normal'"),
    ]:
        with pytest.raises(error, match=message):
            sparsify(model, **arguments)
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(TypeError, match="got str"):
        sparsify("resnet18")
    with pytest.raises(ValueError, match=r"itself the layer \(Linear\).*from_dense"):
        sparsify(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"no nn\.Linear or nn\.Conv2d"):
        sparsify(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"no nn.Linear or nn.Conv2d to replace\n  0 .*excluded"):
        sparsify(model, exclude="*")


def test_given_patterns_are_taken_with_the_weights_under_them():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Conv2d(4, 6, 3)})
    survey = survey_layers(model)
    attention = model["attention"]
    weights = {
        "attention.in_proj": attention.in_proj_weight.detach().clone(),
        "attention.out_proj": attention.out_proj.weight.detach().clone(),
        "head": model["head"].weight.detach().clone(),
    }
    patterns = {name: Pattern.from_mask(torch.rand(w.shape[0], w[0].numel()) < 0.3) for name, w in weights.items()}
    table = replace_layers(model, survey, patterns, keep_weights=True)
    assert table.nnz == sum(pattern.nnz for pattern in patterns.values())
    for name, pattern in patterns.items():
        layer = model.get_submodule(name)
        assert layer.pattern.equal(pattern)
        kept = weights[name].reshape(pattern.shape) * pattern.to_mask()
        assert torch.equal(layer.to_dense().detach().reshape(pattern.shape), kept)


def test_a_plain_survey_leaves_attentions_dense():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Conv2d(4, 6, 3)})
    reasons = {row.name: row.reason for row, _ in survey_layers(model, plain=True)}
    dense = "is no nn.Linear or nn.Conv2d"
    assert reasons == {"attention.in_proj": dense, "attention.out_proj": dense, "head": None}


def test_half_an_attention_cannot_be_replaced():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    (packed, path), (out, _) = survey_layers(model)
    survey = [(packed, path), (dataclasses.replace(out, reason="is not asked for"), path)]
    with pytest.raises(ValueError, match=r"attention\.out_proj is not asked for, but other projections"):
        replace_layers(model, survey, {packed.name: 5})
    assert isinstance(model["attention"], nn.MultiheadAttention)


def test_nothing_dense_is_made():
    from sparsekern.testing import forbid_dense

    model = nn.Sequential(nn.Linear(300, 400), nn.Conv2d(16, 32, 3))
    sizes = {math.prod(m.weight.shape) for m in model}
    probe = nn.ModuleList([SparseLinear(300, 400, density=0.05), SparseConv2d(16, 32, 3, density=0.05)])
    assert {math.prod(m.matrix_shape) for m in probe} == sizes
    with forbid_dense(probe):
        sparsify(model, 0.05, "uniform")
