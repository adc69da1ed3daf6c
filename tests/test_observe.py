"""What an observer says of updates is what a comparison of the whole topologies says."""

import copy
import csv

import pytest
import torch
from test_training import make_config, train_steps
from torch import nn

import sparsekern
from sparsekern.growth import GSE, SET, Observer, Static
from sparsekern.testing import forbid_dense
from sparsekern.training.board import wants_board
from sparsekern.training.checkpoint import load_checkpoint, save_checkpoint
from sparsekern.training.folder import LAYERS, METRICS, RESOURCES, TOPOLOGY, RunFolder
from sparsekern.training.metrics import read_csv
from sparsekern.training.resources import resident_memory
from sparsekern.training.run import build, run
from sparsekern.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 5)
    ).to(dtype)
    sparsekern.sparsify(model, 0.2, generator=torch.Generator().manual_seed(1))
    return model


def step(model, optimizer, observer):
    optimizer.zero_grad()
    x = torch.randn(8, 2, 6, 6, dtype=next(model.parameters()).dtype)
    model(x).square().mean().backward()
    optimizer.step()
    return observer.step()


def edges_of(layer):
    rows, columns = layer.pattern.edges()
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


@pytest.mark.parametrize("method", [GSE, SET])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_survival_is_that_of_the_whole_topologies(method, dtype):
    model = make_model(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    growth = method(model, optimizer, alpha=0.5, interval=2, end=40)
    observer = Observer(growth)
    first = {name: edges_of(layer) for name, layer in growth.layers.items()}
    before, grown, seen = dict(first), {}, set()
    for number in range(1, 30):
        norms = {}
        hook = optimizer.register_step_post_hook(
            lambda *_, norms=norms: norms.update({n: layer.weight.grad.norm() for n, layer in growth.layers.items()})
        )
        rows = step(model, optimizer, observer)
        hook.remove()
        assert bool(rows) == (number % 2 == 0)
        for row in rows:
            layer = growth.layers[row.layer]
            now = edges_of(layer)
            if row.layer in grown:
                assert row.survived == pytest.approx(len(grown[row.layer] & now) / len(grown[row.layer]))
                seen.add(row.survived)
            else:
                assert row.survived is None
            first[row.layer] &= now  # one that went and came again is grown
            assert row.first == pytest.approx(len(first[row.layer]) / len(now))
            if now != before[row.layer]:
                grown[row.layer] = now - before[row.layer]
                assert len(grown[row.layer]) == row.replaced
            before[row.layer] = now
            assert row.grad_norm == pytest.approx(norms[row.layer].item(), rel=1e-5)
            for side, degrees in (("fan_in", layer.pattern.fan_in()), ("fan_out", layer.pattern.fan_out())):
                ordered = sorted(degrees.tolist())
                assert getattr(row, f"{side}_min") == ordered[0]
                assert getattr(row, f"{side}_max") == ordered[-1]
                assert getattr(row, f"{side}_median") == ordered[(len(ordered) - 1) // 2]
                assert getattr(row, f"{side}_mean") == pytest.approx(sum(ordered) / len(ordered))
                assert getattr(row, f"{side}_deviation") == pytest.approx(
                    torch.tensor(ordered).double().std(correction=0)
                )
            assert row.dead_rows == len(set(range(layer.matrix_shape[0])) - {edge[0] for edge in now})
            assert row.dead_columns == len(set(range(layer.matrix_shape[1])) - {edge[1] for edge in now})
    assert observer.seconds > 0
    assert observer.nbytes == sum(layer.nnz for layer in growth.layers.values())
    assert len(seen) > 2  # some died and some did not


def test_an_observed_run_is_the_run_that_is_not():
    observed, plain = make_model(), make_model()
    for model in (observed, plain):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        growth = GSE(model, optimizer, interval=2, end=20, generator=torch.Generator().manual_seed(3))
        stepped = Observer(growth) if model is observed else growth
        torch.manual_seed(5)
        for _ in range(10):
            step(model, optimizer, stepped)
    for name, tensor in observed.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_nothing_is_kept_where_nothing_moves():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(Static(model, optimizer))
    assert step(model, optimizer, observer) == []
    assert observer.nbytes == 0
    assert observer.state_dict() == {"origins": {}}


def test_a_layer_that_is_given_another_topology_begins_anew():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = SET(model, optimizer, interval=1, end=20)
    observer = Observer(growth)
    step(model, optimizer, observer)
    name, layer = list(growth.layers.items())[1]
    layer.set_pattern(sparsekern.Pattern.random(layer.matrix_shape, layer.nnz // 2))
    row = next(row for row in step(model, optimizer, observer) if row.layer == name)
    assert row.survived is None
    assert row.first == 1 - row.replaced / layer.nnz


def test_nothing_dense_is_made():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(GSE(model, optimizer, interval=1, end=20))
    with forbid_dense(model, batch_sizes=(8,)):
        for _ in range(3):
            assert step(model, optimizer, observer)


def test_state_of_another_model_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(SET(model, optimizer, interval=1, end=20))
    step(model, optimizer, observer)
    state = copy.deepcopy(observer.state_dict())
    name = next(iter(state["origins"]))
    with pytest.raises(ValueError, match="nowhere"):
        observer.load_state_dict({"origins": {"nowhere": state["origins"][name]}})
    with pytest.raises(ValueError, match=r"shape \(1,\) for layer"):
        observer.load_state_dict({"origins": {name: torch.ones(1, dtype=torch.int8)}})


@pytest.mark.parametrize("growth", ["set", "gse-grabo"])
def test_observation_resumes_to_the_bit(growth, tmp_path):
    config = make_config("resnet", growth=growth, run={"epochs": 3})
    whole, first, second = Trainer(config), Trainer(config), Trainer(config)
    rows = train_steps(whole, 16)
    begun = train_steps(first, 7)
    save_checkpoint(tmp_path / "x", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "x"))
    assert begun + train_steps(second, 9) == rows
    assert second.layer_rows() == whole.layer_rows() != []


def test_a_checkpoint_of_before_there_were_observers_goes_on(tmp_path):
    config = make_config(run={"epochs": 3})
    trainer, other = Trainer(config), Trainer(config)
    train_steps(trainer, 5)
    state = trainer.state_dict()
    del state["observer"], state["progress"]["norms"]
    save_checkpoint(tmp_path / "x", state)
    other.load_state_dict(load_checkpoint(tmp_path / "x"))
    rows = train_steps(other, 2)
    assert [row["survived"] for row in rows] == [None] * len(rows)
    assert other.norms == {"grad_norm": None, "layers": {}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    config = make_config("resnet", run={"epochs": 2, "plots": False, "tensorboard": False})
    from rich.console import Console

    run(Trainer(config), folder, Console(quiet=True))
    return folder


def test_a_run_writes_its_files(finished):
    for log, columns in (
        (finished.metrics, METRICS),
        (finished.topology, TOPOLOGY),
        (finished.layers, LAYERS),
        (finished.resources, RESOURCES),
    ):
        with log.path.open() as file:
            assert tuple(next(csv.reader(file))) == columns
    steps = {row["step"] for row in read_csv(finished.topology.path)}
    updates = [row for row in read_csv(finished.resources.path) if row["what"] == "update"]
    assert {row["step"] for row in updates} == steps
    for row in updates:
        assert 0 < float(row["seconds"]) < float(row["step_seconds"])
    epochs, layers = read_csv(finished.metrics.path), read_csv(finished.layers.path)
    assert {row["epoch"] for row in layers} == {"1", "2"}
    for epoch in epochs:  # all parameters' gradient is longer than that of the layers' weights
        norms = [float(row["grad_norm"]) for row in layers if row["epoch"] == epoch["epoch"]]
        assert float(epoch["grad_norm"]) > sum(norm**2 for norm in norms) ** 0.5 > 0
    summary = finished.load_summary()
    moving = {row["layer"] for row in read_csv(finished.topology.path) if row["replaced"] != "0"}
    assert summary["memory"]["origins"] == sum(each["nnz"] for each in summary["layers"] if each["name"] in moving) > 0
    assert summary["sparsekern"] == sparsekern.__version__


def test_memory_is_the_kernels(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    20 kB\nVmRSS:\t    10 kB\n")
    assert resident_memory(status) == (10 * 1024, 20 * 1024)
    now, peak = resident_memory(tmp_path / "nowhere")
    assert now is None
    assert peak > 1 << 20


def test_tensorboard_that_is_missing_is_named_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    assert wants_board(None) is wants_board(False) is False
    with pytest.raises(ImportError, match=r"pip install 'sparsekern\[tensorboard\]'"):
        build(make_config(run={"tensorboard": True, "output": tmp_path / "x"}))
    assert not (tmp_path / "x").exists()


def test_tensorboard_has_the_same_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from rich.console import Console
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    run(Trainer(make_config("mlp", run={"epochs": 2, "plots": False})), folder, Console(quiet=True))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for column, tag in (("loss", "loss/train"), ("test_accuracy", "accuracy/test"), ("grad_norm", "run/grad_norm")):
        written = {int(row["step"]): float(row[column]) for row in read_csv(folder.metrics.path)}
        assert {each.step: each.value for each in events.Scalars(tag)} == pytest.approx(written)
    for row in read_csv(folder.topology.path):
        if row["survived"]:
            there = {each.step: each.value for each in events.Scalars(f"survived/{row['layer']}")}
            assert there[int(row["step"])] == pytest.approx(float(row["survived"]))
