"""What training meets at its edges: values that are not finite, rows and layers without edges, ties everywhere."""

import dataclasses
import io
import math
import warnings

import pytest
import torch
from rich.console import Console
from torch import nn

from sparsekern.commands.train import train
from sparsekern.growth import GSE, SET, RigL, find_sparse_layers
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.pattern import Pattern
from sparsekern.training import nonfinite
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from sparsekern.training.progress import StopRequest
from sparsekern.training.run import fit, resume, start
from sparsekern.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = {
    "uniform": lambda *args, **keywords: GSE(*args, "uniform", **keywords),
    "grabo": lambda *args, **keywords: GSE(*args, "grabo", **keywords),
    "graest": lambda *args, **keywords: GSE(*args, "graest", **keywords),
    "rigl": RigL,
    "set": SET,
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "fused sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "fused adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
}
CONSOLE = Console(file=io.StringIO())


def make_config(**run):
    return TrainConfig(
        model=ModelConfig("resnet", width=4, depth=8),
        data=DataConfig(batch_size=256),
        growth=GrowthConfig(interval=3, end=1.0),
        optimizer=OptimizerConfig("adamw", warmup_epochs=0, ema=0.9),
        run=RunConfig(**{"epochs": 2, "plots": False, **run}),
    )


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return value


def kept_parts(trainer):
    """What a skipped step must leave as it was."""
    state = trainer.state_dict()
    return {
        **copied(state["model"]),
        **{f"average.{name}": value for name, value in copied(state["average"]["model"]).items()},
        **{f"optimizer.{key}": value for key, value in copied(state["optimizer"]["state"]).items()},
    }


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_equal(value, right[key])
        else:
            assert torch.equal(value, right[key]), key


def batch_of(trainer, poison=None):
    images, labels = trainer.data.train_images[:256].clone(), trainer.data.train_labels[:256]
    if poison is not None:
        images[7, 0, 3, 3] = poison
    return images, labels


# -- values that are not finite


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_loss_ends_the_run_at_its_step_and_is_not_saved(tmp_path, monkeypatch, capsys, poison):
    config = make_config(output=tmp_path / "run", save_every=2)
    trainer, folder = start(config)
    make_step = Trainer.train_step

    def poisoned_step(self, images, labels):
        if self.step == 3:
            images = images.clone()
            images[0, 0, 0, 0] = poison
        return make_step(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", poisoned_step)
    with pytest.raises(FloatingPointError, match="training loss of step 4 is nan"):
        fit(trainer, folder, CONSOLE, StopRequest())
    assert load_checkpoint(folder.checkpoint)["progress"]["step"] == 2
    with pytest.raises(FloatingPointError, match=r"hold.* not finite.*not saved"):
        folder.save(trainer)
    assert train(["--resume", str(folder.path)]) == 1
    assert "training loss of step 4 is nan" in capsys.readouterr().err
    skipping = dataclasses.replace(config, run=dataclasses.replace(config.run, nonfinite="skip"))
    with pytest.warns(UserWarning, match="step 4 is skipped: its loss is not finite"):
        fit(resume(skipping, folder), folder, CONSOLE, StopRequest())
    assert load_checkpoint(folder.checkpoint)["progress"]["step"] == 10
    nonfinite.check_finite(resume(skipping, folder).model)


def test_a_skipped_step_leaves_no_trace():
    trainer = Trainer(make_config(nonfinite="skip"))
    for _ in range(2):
        trainer.train_step(*batch_of(trainer))
    before, totals = kept_parts(trainer), dataclasses.replace(trainer.totals, seconds=0)
    rate = trainer.scheduler.get_last_lr()
    with pytest.warns(UserWarning, match="step 3 is skipped: its loss is not finite"):
        assert trainer.train_step(*batch_of(trainer, math.nan)) == []  # step 3 would have been an update
    assert_equal(kept_parts(trainer), before)
    assert dataclasses.replace(trainer.totals, seconds=0) == totals
    assert trainer.step == 3
    assert trainer.scheduler.get_last_lr() != rate  # the schedule goes on
    assert trainer.growth.steps == 2
    rows = trainer.train_step(*batch_of(trainer))  # the update, at the next step that is made
    assert {row["step"] for row in rows} == {4}
    assert sum(row["replaced"] for row in rows) > 0


def test_a_bad_gradient_of_a_finite_loss_is_skipped_too():
    trainer = Trainer(make_config(nonfinite="skip"))
    for _ in range(2):
        trainer.train_step(*batch_of(trainer))
    before = kept_parts(trainer)
    handle = trainer.model.head.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.warns(UserWarning, match="step 3 is skipped: its gradient is not finite"):
        assert trainer.train_step(*batch_of(trainer)) == []
    handle.remove()
    assert_equal(kept_parts(trainer), before)


def test_a_lost_run_ends_rather_than_skip_forever(monkeypatch):
    monkeypatch.setattr(nonfinite, "LIMIT", 3)
    trainer = Trainer(make_config(nonfinite="skip"))
    good, bad = batch_of(trainer), batch_of(trainer, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in (bad, bad, good, bad, bad):
            trainer.train_step(*batch)
        state = trainer.state_dict()
        other = Trainer(make_config(nonfinite="skip"))
        other.load_state_dict(state)  # a restart does not begin to count anew
        for each in (trainer, other):
            with pytest.raises(FloatingPointError, match="in 3 steps in a row, up to step 6"):
                each.train_step(*bad)
        lost = Trainer(make_config(nonfinite="skip"))
        lost.train_step(*bad)
    with pytest.raises(FloatingPointError, match="all steps of epoch 1 were skipped"):
        lost.finish_epoch()


def test_a_scaler_decides_on_its_gradients_itself():
    trainer = Trainer(
        dataclasses.replace(make_config(nonfinite="skip", dtype="float16"), optimizer=OptimizerConfig(warmup_epochs=0))
    )
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**100})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        trainer.train_step(*batch_of(trainer))
    assert trainer.scaler.get_scale() == 2.0**99


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_the_first_to_go(method):
    layer = SparseLinear(6, 5, bias=False, density=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    growth = METHODS[method](layer, optimizer, alpha=0.2, interval=1, end=100)
    layer(torch.rand(3, 6)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.weight[4] = math.nan
    growth.step()
    assert layer.weight.isfinite().all()


# -- rows and layers without edges


def rows_cut(layer, row):
    """The layer without the edges of one row."""
    mask = layer.pattern.to_mask().bool()
    mask[row] = False
    layer.set_pattern(Pattern.from_mask(mask))
    return layer


LAYERS = {
    "linear": (lambda: SparseLinear(6, 5, density=0.6), (4, 6)),
    "conv": (lambda: SparseConv2d(3, 5, 3, padding=1, density=0.5), (2, 3, 7, 7)),
    "grouped conv": (lambda: SparseConv2d(4, 6, 3, groups=2, density=0.5), (2, 4, 7, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_neuron_without_inputs_gives_its_bias(kind):
    make, size = LAYERS[kind]
    layer = rows_cut(make(), 2)
    assert layer.bias.isfinite().all()
    x = torch.randn(size, requires_grad=True)
    y = layer(x)
    neuron = y[:, 2] if y.dim() == 4 else y[..., 2]
    assert torch.equal(neuron, layer.bias[2].expand_as(neuron))
    neuron.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert layer.bias.grad[2] == neuron.numel()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_neuron_without_inputs_gets_some_again(kind, method):
    make, size = LAYERS[kind]
    torch.manual_seed(1)
    layer = rows_cut(make(), 2)
    nnz = layer.nnz
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    growth = METHODS[method](layer, optimizer, alpha=0.5, interval=1, end=10**6)
    for _ in range(5):
        optimizer.zero_grad()
        y = layer(torch.randn(size))
        (y[:, 2] * 10 if y.dim() == 4 else y[..., 2] * 10).square().sum().add(y.sum()).backward()
        optimizer.step()
        growth.step()
    layer.pattern.validate()
    assert layer.nnz == nnz
    assert (layer.row_indices == 2).any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_without_edges_gives_its_bias_and_stays_so(kind, method, optimizer):
    make, size = LAYERS[kind]
    empty = make()
    empty.set_pattern(Pattern.from_mask(torch.zeros(empty.matrix_shape)))
    assert (empty.nnz, empty.weight.numel(), empty.density) == (0, 0, 0.0)
    other = SparseLinear(6, 5, density=0.5)
    model = nn.ModuleDict({"empty": empty, "other": other})
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    growth = METHODS[method](model, optimizer, interval=1, end=10)
    x = torch.randn(size, requires_grad=True)
    for _ in range(2):
        y = empty(x)
        assert torch.equal(y, empty.bias.view(-1, *[1] * (y.dim() - 2)).expand_as(y))
        (y.sum() + other(torch.rand(2, 6)).sum()).backward()
        optimizer.step()
        update = growth.step()[0]
        assert (update.layer, update.nnz, update.asked, update.replaced, update.skipped) == ("empty", 0, 0, 0, "")
    assert torch.equal(x.grad, torch.zeros_like(x))
    again = make()
    again.load_state_dict(empty.state_dict())
    assert again.nnz == 0
    assert torch.equal(again(x), empty(x))


# -- all alike


@pytest.mark.parametrize("method", METHODS)
def test_an_update_can_replace_every_edge(method):
    """alpha 1, at the beginning of a long run: each edge goes, to where there was none."""
    layer = SparseLinear(12, 10, bias=False, density=0.3)
    before = layer.pattern.to_mask().bool()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    growth = METHODS[method](layer, optimizer, alpha=1, interval=1, end=10**9)
    layer(torch.rand(4, 12)).square().sum().backward()
    optimizer.step()
    (update,) = growth.step()
    assert update.asked == update.replaced == layer.nnz == 36
    layer.pattern.validate()
    assert not (before & layer.pattern.to_mask().bool()).any()
    assert torch.equal(layer.weight, torch.zeros(36))
    assert torch.equal(optimizer.state[layer.weight]["exp_avg"], torch.zeros(36))


@pytest.mark.parametrize("weight", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("method", METHODS)
def test_where_all_is_tied_the_stored_order_decides(method, weight):
    """No input, so no gradient anywhere: the first edges go and, of the candidates, the first come."""
    first, second = (SparseLinear(12, 10, bias=False, density=0.3, generator=torch.Generator().manual_seed(3)),) * 2
    second = SparseLinear(12, 10, bias=False, density=0.3, generator=torch.Generator().manual_seed(3))
    patterns = []
    for layer in (first, second):
        with torch.no_grad():
            layer.weight.fill_(weight)
        edges = list(zip(*(side.tolist() for side in layer.pattern.edges()), strict=True))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        growth = METHODS[method](
            layer, optimizer, alpha=0.5, interval=1, end=10**9, generator=torch.Generator().manual_seed(5)
        )
        layer(torch.zeros(4, 12)).sum().backward()
        optimizer.step()
        (update,) = growth.step()
        assert update.replaced == update.asked == 18
        now = set(zip(*(side.tolist() for side in layer.pattern.edges()), strict=True))
        assert now.isdisjoint(edges[:18])
        assert now.issuperset(edges[18:])
        patterns.append(layer.pattern)
    assert patterns[0].equal(patterns[1])


def test_a_network_of_zeros_trains():
    trainer = Trainer(make_config())
    with torch.no_grad():
        for layer in find_sparse_layers(trainer.model).values():
            layer.weight.zero_()
    for images, labels in trainer.loader:
        trainer.train_step(images, labels)
    for layer in find_sparse_layers(trainer.model).values():
        layer.pattern.validate()
        assert layer.weight.isfinite().all()
