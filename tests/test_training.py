import dataclasses
import json

import pytest
import torch
from torch import nn

from sparsekern.growth import find_sparse_layers
from sparsekern.testing import forbid_dense
from sparsekern.training.build import build_optimizer, build_scheduler, split_parameters
from sparsekern.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sparsekern.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SparsityConfig,
    TrainConfig,
)
from sparsekern.training.folder import RunFolder
from sparsekern.training.load import load_model
from sparsekern.training.memory import measure_memory
from sparsekern.training.metrics import CsvLog, read_csv
from sparsekern.training.trainer import Trainer

SMALL = {
    "mlp": ModelConfig("mlp", width=24, depth=1),
    "resnet": ModelConfig("resnet", width=4, depth=8),
    "vit": ModelConfig("vit", width=16, depth=1, heads=2, patch=4),
}
# With one growth only.
OTHERS = {
    "resnet18": ModelConfig("resnet18", width=4),
    "resnet50": ModelConfig("resnet50", width=4, stem="imagenet"),
    "vgg16": ModelConfig("vgg16", width=4, hidden=32),
    "mobilenetv1": ModelConfig("mobilenetv1", width=8),
    "mobilenetv2": ModelConfig("mobilenetv2", width=32),  # narrower, a layer has the shape of an image
    "simple-vit": ModelConfig("simple-vit", width=16, depth=1, heads=2, hidden=16),
    "vit-ti": ModelConfig("vit-ti", patch=4),
}
GROWTHS = ("static", "set", "rigl", "gse-uniform", "gse-grabo", "gse-graest")


pytestmark = pytest.mark.usefixtures("one_thread")


def make_config(model="mlp", *, density=0.3, growth="gse-grabo", interval=2, end=1.0, **changes):
    config = TrainConfig(
        model=(SMALL | OTHERS)[model],
        data=DataConfig(batch_size=128),
        sparsity=SparsityConfig(density=density),
        growth=GrowthConfig(growth, interval=interval, end=end),
        optimizer=OptimizerConfig(warmup_epochs=0),
        run=RunConfig(epochs=1),
    )
    for section, values in changes.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    return config


def train_steps(trainer, count):
    """The rows of topology updates of `count` steps, ending epochs as they come."""
    rows = []
    while True:
        for images, labels in trainer.loader:
            rows += trainer.train_step(images, labels)
            count -= 1
            if count == 0:
                return rows
        trainer.finish_epoch()


def flat_state(tree, path=""):
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from flat_state(child, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for index, child in enumerate(tree):
            yield from flat_state(child, f"{path}/{index}")
    else:
        yield path, tree


def assert_same_state(left, right):
    """Equal to the bit, but for the time that the steps took."""
    left, right = dict(flat_state(left)), dict(flat_state(right))
    assert left.keys() == right.keys()
    for path, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[path]), path
        elif not path.endswith("seconds"):
            assert value == right[path], path


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("growth", GROWTHS)
def test_every_model_trains_under_every_growth(model, growth):
    trainer = Trainer(make_config(model, growth=growth))
    nnz = trainer.nnz
    rows = train_steps(trainer, 5)
    assert {row["step"] for row in rows} == (set() if growth == "static" else {2, 4})
    assert all(row["replaced"] <= row["candidates"] for row in rows)
    if growth != "static":
        assert sum(row["replaced"] for row in rows) > 0
    assert trainer.nnz == nnz == sum(layer.nnz for layer in find_sparse_layers(trainer.model).values())
    for layer in find_sparse_layers(trainer.model).values():
        layer.pattern.validate()


@pytest.mark.parametrize("model", OTHERS)
def test_the_other_models_train_make_nothing_dense_and_go_on_to_the_bit(model, tmp_path):
    config = make_config(model, density=0.3, data={"batch_size": 37})
    trainer, other = Trainer(config), Trainer(config)
    with forbid_dense(trainer.model, batch_sizes=(37,)):
        assert sum(row["replaced"] for row in train_steps(trainer, 2)) > 0
        save_checkpoint(tmp_path / "x", trainer.state_dict())
        train_steps(trainer, 1)
        other.load_state_dict(load_checkpoint(tmp_path / "x"))  # the random state of dropout too
        train_steps(other, 1)
    assert_same_state(trainer.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("growth", ["set", "gse-uniform", "gse-grabo", "gse-graest"])
def test_no_dense_tensor_in_training_saving_and_loading(model, growth, tmp_path):
    config = make_config(model, density=0.05, growth=growth, data={"batch_size": 37})
    trainer, other = Trainer(config), Trainer(config)
    with forbid_dense(trainer.model, batch_sizes=(37, len(trainer.data.test_images))):
        train_steps(trainer, 4)
        trainer.evaluate()
        save_checkpoint(tmp_path / "x", trainer.state_dict())
    with forbid_dense(other.model, batch_sizes=(37,)):
        other.load_state_dict(load_checkpoint(tmp_path / "x"))
    assert_same_state(trainer.state_dict(), other.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_learn(dtype):
    trainer = Trainer(make_config("resnet", density=0.3, run={"dtype": dtype, "epochs": 2}))
    train_steps(trainer, trainer.total_steps)
    assert trainer.evaluate()[1] > 0.3  # chance is 0.1
    expected = torch.float64 if dtype == "float64" else torch.float32
    assert {p.dtype for p in trainer.model.parameters()} == {expected}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_first_step_that_is_skipped_leaves_no_trace(optimizer):
    trainer = Trainer(make_config(optimizer={"name": optimizer}, run={"dtype": "float16"}))
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**100})
    torch.use_deterministic_algorithms(True)  # what is not initialised is then NaN
    try:
        train_steps(trainer, 1)
        assert trainer.scaler.get_scale() == 2.0**99
        assert all(map(torch.equal, before, trainer.model.parameters()))
        trainer.scaler.update(1.0)
        train_steps(trainer, 1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(map(torch.equal, before, trainer.model.parameters()))
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("growth", "optimizer"), [*((growth, "sgd") for growth in GROWTHS), ("gse-grabo", "adam"), ("gse-graest", "adamw")]
)
def test_resumed_state_is_the_same_to_the_bit(growth, optimizer, tmp_path):
    config = make_config(
        "resnet", growth=growth, optimizer={"name": optimizer, "warmup_epochs": 0.5}, run={"epochs": 3}
    )
    whole, first, second = Trainer(config), Trainer(config), Trainer(config)
    train_steps(whole, 16)
    train_steps(first, 7)
    save_checkpoint(tmp_path / "x", first.state_dict())
    torch.rand(5)
    second.load_state_dict(load_checkpoint(tmp_path / "x"))
    train_steps(second, 9)
    assert_same_state(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
@pytest.mark.parametrize("stop", [2, 5, 9])
def test_schedules_resume(schedule, stop, tmp_path):
    def make():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        config = OptimizerConfig(schedule=schedule, warmup_epochs=2, milestones=(0.4, 0.7))
        return optimizer, build_scheduler(config, optimizer, steps=12, steps_per_epoch=2)

    def rates(optimizer, scheduler, count):
        collected = []
        for _ in range(count):
            collected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return collected

    whole = rates(*make(), 12)
    optimizer, scheduler = make()
    before = rates(optimizer, scheduler, stop)
    save_checkpoint(tmp_path / "x", {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    state = load_checkpoint(tmp_path / "x")
    optimizer, scheduler = make()
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert before + rates(optimizer, scheduler, 12 - stop) == whole


def test_schedules_follow_their_formulas():
    def rates(schedule, warmup):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        config = OptimizerConfig(schedule=schedule, warmup_epochs=warmup, milestones=(0.5, 0.75))
        scheduler = build_scheduler(config, optimizer, steps=20, steps_per_epoch=2)
        collected = []
        for _ in range(20):
            collected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return torch.tensor(collected)

    rise = torch.tensor([0.2, 0.4, 0.6, 0.8])
    cosine = (1 + torch.cos(torch.arange(16) * torch.pi / 16)) / 2
    torch.testing.assert_close(rates("cosine", 2), torch.cat([rise, cosine]))
    torch.testing.assert_close(rates("constant", 0), torch.ones(20))
    steps = torch.tensor([1.0] * 10 + [0.1] * 5 + [0.01] * 5)
    torch.testing.assert_close(rates("multistep", 0), steps)
    torch.testing.assert_close(rates("multistep", 2), torch.cat([rise, steps[4:]]))


def test_decay_pulls_at_weights_only():
    trainer = Trainer(make_config("vit"))
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    decayed, undecayed = split_parameters(trainer.model)
    assert sorted(names.values()) == sorted(names[parameter] for parameter in [*decayed, *undecayed])
    assert all(names[parameter].endswith(".weight") for parameter in decayed)
    assert {names[parameter] for parameter in undecayed if names[parameter].endswith("weight")} == {
        "norm.weight",
        "blocks.0.norm1.weight",
        "blocks.0.norm2.weight",
    }
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.25), trainer.model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]


def test_same_seed_same_run_and_another_seed_another():
    first, again = (Trainer(make_config("resnet")) for _ in range(2))
    other = Trainer(make_config("resnet", run={"seed": 1}))
    for trainer in (first, again, other):
        train_steps(trainer, 3)
    assert_same_state(first.state_dict(), again.state_dict())
    assert not torch.equal(first.loader.order, other.loader.order)
    one, two = (find_sparse_layers(trainer.model)["blocks.1.conv1"] for trainer in (first, other))
    assert not torch.equal(one.row_indices, two.row_indices)


def test_diverged_loss_ends_the_run():
    trainer = Trainer(make_config("mlp", growth="static"))
    trainer.data.train_images[:] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        train_steps(trainer, 1)


def saved_trainer(tmp_path, **changes):
    config = make_config("mlp", **changes)
    trainer, folder = (
        Trainer(config),
        RunFolder.create(dataclasses.replace(config, run=RunConfig(epochs=1, output=tmp_path))),
    )
    train_steps(trainer, 2)
    folder.save(trainer)
    return config, folder


def test_checkpoint_of_another_run_is_refused(tmp_path):
    _, folder = saved_trainer(tmp_path)
    other = Trainer(make_config("resnet"))
    with pytest.raises(CheckpointError, match=r"cannot be used.*another run.*model\.name is 'mlp', here .*'resnet'"):
        folder.restore(other)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    config, folder = saved_trainer(tmp_path)
    state = load_checkpoint(folder.checkpoint)
    state["model"]["extra.weight"] = state["model"].pop("head.bias")
    save_checkpoint(folder.checkpoint, state)
    with pytest.raises(CheckpointError, match=r"(?s)do not fit this run.*head\.bias"):
        folder.restore(Trainer(config))


def test_load_model(tmp_path):
    config, folder = saved_trainer(tmp_path)
    trainer = Trainer(config)
    folder.restore(trainer)
    images = trainer.data.test_images
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images), trainer.model.eval()(images))
    with pytest.raises(FileNotFoundError, match="it has no config"):
        load_model(tmp_path / "gone")


@pytest.mark.parametrize("damage", ["out of range", "duplicate", "unsorted", "negative"])
def test_checkpoint_with_a_bad_topology_is_refused(damage, tmp_path):
    config, folder = saved_trainer(tmp_path)
    state = load_checkpoint(folder.checkpoint)
    rows, columns = (state["model"][f"hidden.0.{name}"] for name in ("row_indices", "ccol_indices"))
    start = int((columns.diff() >= 2).nonzero()[0])
    slot = int(columns[start])
    if damage == "out of range":
        rows[slot] = 24
    elif damage == "duplicate":
        rows[slot + 1] = rows[slot]
    elif damage == "unsorted":
        rows[[slot, slot + 1]] = rows[[slot + 1, slot]]
    else:
        rows[slot] = -1
    save_checkpoint(folder.checkpoint, state)
    with pytest.raises(CheckpointError, match=r"(?s)do not fit this run.*hidden\.0"):
        folder.restore(Trainer(config))


def test_restoring_cuts_the_csvs_back(tmp_path):
    config, folder = saved_trainer(tmp_path)
    folder.topology.append([{"step": step, "layer": "head", "replaced": 1} for step in (1, 2, 3)])
    folder.metrics.append([{"step": 3, "epoch": 1}])
    folder.restore(Trainer(config))
    assert [row["step"] for row in read_csv(folder.topology.path)] == ["1", "2"]
    assert read_csv(folder.metrics.path) == []
    assert folder.metrics.path.read_text().startswith("step,epoch,loss")


def test_csv_log(tmp_path):
    log = CsvLog(tmp_path / "x.csv", ("step", "layer"))
    assert read_csv(log.path) == []
    log.cut(3)
    log.append([{"step": 1, "layer": 'with "quotes", commas'}])
    log.append([])
    log.append([{"step": 2, "layer": "b"}, {"step": 3, "layer": "c"}])
    assert [row["layer"] for row in read_csv(log.path)] == ['with "quotes", commas', "b", "c"]
    with log.path.open("a") as file:
        file.write("1")  # a kill in the middle of a row
    log.cut(2)
    assert [row["layer"] for row in read_csv(log.path)] == ['with "quotes", commas', "b"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("model", SMALL)
def test_memory_is_counted_exactly(model, optimizer):
    config = make_config(model, density=0.1, optimizer={"name": optimizer})
    trainer, twin = Trainer(config), Trainer(dataclasses.replace(config, sparsity=SparsityConfig(dense=True)))
    for each in (trainer, twin):
        train_steps(each, 2)
    sparse, computed = measure_memory(trainer.model, trainer.optimizer)
    dense, dense_computed = measure_memory(twin.model, twin.optimizer)
    assert computed == dense == dense_computed
    assert dense.indices == 0
    held = list(trainer.model.parameters())
    assert sparse.weights + sparse.other_parameters == sum(p.nbytes for p in held)
    assert sparse.gradients == sum(p.grad.nbytes for p in held)
    assert sparse.buffers + sparse.indices == sum(b.nbytes for b in trainer.model.buffers())
    state = [value for each in trainer.optimizer.state.values() for value in each.values()]
    assert sparse.optimizer_state == sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
    assert sparse.weights == 4 * trainer.nnz


def test_config_survives_json():
    config = make_config("vit", sparsity={"exclude": ("head*",), "density": 0.02}, run={"output": None})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.label == "vit-gse-grabo-0.02-0"
    assert dataclasses.replace(config, sparsity=SparsityConfig(density=1)).label == "vit-dense-0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig("vgg"), "model must be one of mlp, resnet, .*simple-vit, .*got 'vgg'"),
        (lambda: ModelConfig("mlp", heads=2), "heads does not apply to model mlp, which takes width, depth"),
        (lambda: ModelConfig("mlp", width=0), "width must be at least 1, got 0"),
        (lambda: DataConfig("cifar"), "data must be one of digits, cifar10, .*imagenet, got 'cifar'"),
        (lambda: SparsityConfig(density=0), "density must be above 0 and at most 1, got 0"),
        (lambda: SparsityConfig(distribution="erdos"), "distribution must be one of erk, er, uniform, got 'erdos'"),
        (lambda: GrowthConfig("gse"), "growth must be one of .*gse-uniform.*, got 'gse'"),
        (lambda: GrowthConfig(alpha=1.5), "alpha must be from 0 to 1, got 1.5"),
        (lambda: GrowthConfig(interval=0), "interval must be at least 1"),
        (lambda: GrowthConfig(gamma=0), "gamma must be above 0, got 0"),
        (lambda: OptimizerConfig("lion"), "optimizer must be one of sgd, adam, adamw, got 'lion'"),
        (lambda: OptimizerConfig(lr=float("nan")), "lr must be above 0, got nan"),
        (lambda: OptimizerConfig(schedule="step"), "schedule must be one of cosine, multistep, constant"),
        (lambda: RunConfig(dtype="int8"), "dtype must be one of .*got 'int8'"),
        (lambda: RunConfig(threads=0), "threads must be at least 1"),
        (lambda: TrainConfig.from_dict({"data": {"name": "digits", "colour": 1}}), r"unknown option data\.colour"),
        (lambda: TrainConfig.from_dict({"date": {}}), "unknown section 'date'"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
