"""Counts against torch's own FLOP counter, by hand, and against what RigL published."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsekern.cli import main
from sparsekern.counting import PRODUCTS, count_model
from sparsekern.models import MODELS, make_model
from sparsekern.sparsify import sparsify


def on_meta(name, size, classes, **options):
    with torch.device("meta"):
        return make_model(name, 3, size, classes, **options)


@pytest.mark.parametrize("name", MODELS)
def test_dense_counts_are_torchs_and_every_parameter_is_in_them(name):
    patch = {"patch": 4} if name.startswith("vit-") else {}
    model = on_meta(name, 32, 10, **patch)
    counts = count_model(model, (3, 32, 32))
    assert counts.parameters == counts.dense_parameters == sum(p.numel() for p in model.parameters())
    assert counts.flops == counts.dense_flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    attention = sum(row.flops for row in counts.rows if row.name == PRODUCTS)
    assert counter.get_total_flops() == counts.flops - attention
    if "vit" in name:
        blocks, tokens, inner = {
            "vit": (4, 256, 128),
            "simple-vit": (4, 64, 384),
            "vit-ti": (12, 65, 192),
            "vit-s": (12, 65, 384),
            "vit-b": (12, 65, 768),
        }[name]
        assert attention == 4 * blocks * tokens**2 * inner
    assert all(module.training is False for module in model.modules())


def test_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * 8 * 8, 5),
    )
    counts = count_model(model, (4, 8, 8))
    assert [row.name for row in counts.rows] == ["0", "1", "3", "5"]
    assert counts["0"].flops == 2 * (6 * 2 * 9) * 16
    assert counts["0"].activations == counts["1"].activations == 6 * 16
    assert counts["1"].flops == 0
    assert counts["1"].parameters == 12
    assert counts["3"].flops == 2 * (6 * 2 * 4) * 16
    assert counts["5"].flops == 2 * 128 * 5
    assert counts["5"].parameters == 129 * 5
    sparsify(model, 0.25, "uniform")
    sparse = count_model(model, (4, 8, 8))
    assert sparse["0"].flops == 2 * model[0].nnz * 16
    assert sparse["5"].flops == 2 * model[5].nnz
    assert sparse["3"].flops == counts["3"].flops
    assert sparse.dense_flops == counts.flops
    assert sparse.dense_parameters == counts.parameters
    assert sparse.weights == model[0].nnz + model[5].nnz + 48
    assert sparse.parameters == sum(p.numel() for p in model.parameters())


def test_attention_counts_its_projections_and_its_products():
    dense = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    source, target = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    before = count_model(dense, (source, target))
    assert before.parameters == sum(p.numel() for p in dense.parameters())
    assert before["encoder.layers.0.self_attn"].flops == 2 * 2 * 7 * 4 * 16 * 16
    assert before["decoder.layers.0.multihead_attn"].flops == 2 * 2 * 16 * 16 * (5 + 7 + 7 + 5)
    products = 4 * 2 * 16 * (7 * 7 + 5 * 5 + 5 * 7)
    assert before[PRODUCTS].flops == products
    sparse = copy.deepcopy(dense)
    table = sparsify(sparse, 0.25)
    after = count_model(sparse, (source, target))
    assert after[PRODUCTS].flops == products
    assert after.dense_flops == before.flops
    assert after.parameters == sum(p.numel() for p in sparse.parameters())
    assert {row.name for row in table.rows} <= {row.name for row in after.rows}


def test_shared_modules_count_their_parameters_once_and_their_products_each_time():
    layer = nn.Linear(8, 8, bias=False)
    tied = nn.Linear(8, 8, bias=False)
    tied.weight = layer.weight
    counts = count_model(nn.Sequential(layer, layer, tied), (8,))
    assert counts.parameters == 64
    assert counts["0"].flops == 2 * 2 * 64
    assert counts.flops >= counts["0"].flops


def test_a_real_model_stays_as_it_is_and_the_counts_do_not_depend_on_the_device():
    torch.manual_seed(0)
    model = make_model("resnet", 3, 16, 10, width=4, depth=8)
    sparsify(model, 0.2)
    model.blocks[0].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    counts = count_model(model, (3, 16, 16))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert count_model(model, torch.randn(1, 3, 16, 16)) == counts
    assert count_model(model, {"images": torch.randn(3, 3, 16, 16)}).flops == 3 * counts.flops


def test_a_forward_that_needs_values_runs_on_the_real_model():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            y = self.layer(x)
            return y if y.sum().item() >= 0 else -y

    assert count_model(Choosing(), (4,)).flops == 24


# RigL's repository: fraction of dense FLOPs of ResNet-50, two digits; uniform keeps the first convolution dense.
PUBLISHED = {
    (0.2, "erk"): 0.42,
    (0.2, "uniform"): 0.23,
    (0.1, "erk"): 0.24,
    (0.1, "uniform"): 0.13,
    (0.05, "erk"): 0.12,
    (0.05, "uniform"): 0.08,
    (0.035, "erk"): 0.09,
    (0.035, "uniform"): 0.07,
}


@pytest.mark.parametrize(("density", "distribution"), PUBLISHED)
def test_resnet50_is_rigls(density, distribution):
    model = on_meta("resnet50", 224, 1000)
    sparsify(model, density, distribution, exclude="stem" if distribution == "uniform" else ())
    counts = count_model(model, (3, 224, 224))
    published = PUBLISHED[density, distribution]
    assert counts.flops / counts.dense_flops == pytest.approx(published, abs=0.01)

    def theirs(dense):
        """Their rule: one operation more for each output, and the first convolution at 115 x 115 pixels."""
        total = 0
        for row in counts.rows:
            if row.shape:
                padded = 115**2 / 112**2 if row.name == "stem" else 1
                total += ((row.dense_flops if dense else row.flops) + row.activations) * padded
        return total

    assert round(theirs(False) / theirs(True), 2) == published
    assert theirs(True) == pytest.approx(8.2e9, rel=0.001)


def test_resnet50_uniform_with_a_sparse_stem_is_the_papers_tenth():
    model = on_meta("resnet50", 224, 1000)
    sparsify(model, 0.1, "uniform")
    counts = count_model(model, (3, 224, 224))
    assert counts.flops / counts.dense_flops == pytest.approx(0.10, abs=1e-4)


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
def test_resnet50s_layer_densities_are_those_of_rigls_rule(density):
    """The published recursion, written out: layers past 1 fixed at 1, the most probable first, the rest rescaled."""
    model = on_meta("resnet50", 224, 1000)
    rows = sparsify(model, density, "erk").rows
    sizes = {row.name: math.prod(row.shape) for row in rows}
    raw = {row.name: sum(row.shape) / sizes[row.name] for row in rows}
    full = set()
    while True:
        free = [name for name in sizes if name not in full]
        wanted = density * sum(sizes.values()) - sum(sizes[name] for name in full)
        factor = wanted / sum(raw[name] * sizes[name] for name in free)
        if max(raw[name] for name in free) * factor <= 1:
            break
        most = max(raw[name] for name in free)
        full |= {name for name in free if raw[name] == most}
    for row in rows:
        expected = 1.0 if row.name in full else factor * raw[row.name]
        assert row.density == pytest.approx(expected, abs=1.5 / row.size)
    assert density < 0.1 or full


def test_the_command_prints_a_table_without_making_a_weight(capsys, monkeypatch):
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    assert main(["info", "--model", "resnet18", "--density", "0.05", "--exclude", "head"]) == 0
    table, notes = capsys.readouterr().out.split("\n\n")
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["layer", "kind", "shape", "density"]
    assert lines[1].split()[:2] == ["stem", "SparseConv2d"]
    assert lines[-3].split()[:2] == ["head", "Linear"]
    assert lines[-2].startswith("total ")
    assert lines[-1].split()[3:6] == ["1.0000", "11,678,912", "11,689,512"]
    assert notes.startswith("Layers for which dense measured faster (docs/crossover.md)")
    assert made
    assert all(tensor.is_meta or tensor.numel() < 1000 for tensor in made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "density must be in (0, 1]"),
        (["--exclude", "tail"], "'tail' matches no"),
        (["--model", "vit-b", "--size", "40"], "patch must divide the image size 40"),
    ],
)
def test_what_cannot_be_counted_is_said_in_a_line(arguments, message, capsys):
    assert main(["info", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_markdown_and_dense(capsys):
    assert main(["info", "--model", "mlp", "--density", "1", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert "| 1.0000 |" in lines[2]


def test_no_module_is_an_error():
    with pytest.raises(TypeError, match="got str"):
        count_model("resnet", (3, 32, 32))
