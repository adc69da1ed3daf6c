"""What a run can add to plain training: a dev set, a moving average of the weights, mixed images, clipping."""

import csv
import dataclasses
import json

import pytest
import test_training
import torch
import torch.nn.functional as F
from archives import cifar_archive, torchvision_or_skip
from test_training import assert_same_state, train_steps
from torch import nn

from sparsekern.cli import main
from sparsekern.growth import find_sparse_layers
from sparsekern.training.average import WeightAverage
from sparsekern.training.build import split_parameters
from sparsekern.training.checkpoint import load_checkpoint, save_checkpoint
from sparsekern.training.config import (
    DataConfig,
    OptimizerConfig,
    SparsityConfig,
    TrainConfig,
)
from sparsekern.training.load import load_model
from sparsekern.training.memory import measure_memory
from sparsekern.training.mixing import build_mixing
from sparsekern.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def make_config(**changes):
    """Two epochs of a small ResNet."""
    return test_training.make_config("resnet", **{**changes, "run": {"epochs": 2, **changes.get("run", {})}})


# -- moving average


def test_average_follows_its_formula():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.75)
    tracked = [model[0].weight, model[1].running_mean]
    expected = None
    for step in range(4):
        model(torch.randn(5, 3))
        with torch.no_grad():
            model[0].weight.add_(step + 1)
        average.update(model)
        now = [tensor.detach().clone() for tensor in tracked]
        expected = (
            now if expected is None else [0.75 * old + 0.25 * new for old, new in zip(expected, now, strict=True)]
        )
    torch.testing.assert_close([average.model[0].weight.detach(), average.model[1].running_mean], expected)
    assert average.model[1].num_batches_tracked == 4
    with pytest.raises(ValueError, match=r"decay must be above 0 and below 1, got 1\.0"):
        WeightAverage(model, 1.0)


@pytest.mark.parametrize("growth", ["set", "gse-graest", "rigl"])
def test_average_follows_the_topology(growth):
    trainer = Trainer(make_config(growth=growth, optimizer={"ema": 0.9}))
    train_steps(trainer, 3)
    layers, averages = (find_sparse_layers(model) for model in (trainer.model, trainer.average.model))
    images, labels = next(iter(trainer.loader))
    before = {name: layer.to_dense().detach() for name, layer in averages.items()}
    held = {name: layer.pattern.to_mask() for name, layer in layers.items()}
    trainer.train_step(images, labels)
    moved = 0
    for name, layer in layers.items():
        assert averages[name].pattern.equal(layer.pattern)
        grown = layer.pattern.to_mask() & ~held[name]
        moved += int(grown.sum())
        after = averages[name].to_dense().detach().view(grown.shape)
        assert (after[grown] == 0).all()
        kept = layer.pattern.to_mask() & held[name]
        expected = before[name].view(grown.shape).lerp(layer.to_dense().detach().view(grown.shape), 1 - 0.9)
        torch.testing.assert_close(after[kept], expected[kept])
    assert moved > 0


def test_the_average_is_what_is_tested_and_loaded(tmp_path):
    arguments = ["--width", "4", "--depth", "8", "--batch-size", "128", "--epochs", "1", "--no-plots", "--threads", "1"]
    assert main(["train", *arguments, "--ema", "0.9", "--output", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    model = load_model(tmp_path / "run")
    trainer = Trainer(TrainConfig(data=DataConfig(batch_size=128)))
    images, labels = next(trainer.data.batches("test", 1000))
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).double().mean().item()
    assert right == summary["test_accuracy"]
    state = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert torch.equal(state["average"]["model"]["head.weight"], model.state_dict()["head.weight"])
    assert not torch.equal(state["model"]["head.weight"], model.state_dict()["head.weight"])


def test_memory_of_the_average_is_counted():
    config = make_config(optimizer={"ema": 0.9})
    trainer, twin = Trainer(config), Trainer(dataclasses.replace(config, sparsity=SparsityConfig(dense=True)))
    for each in (trainer, twin):
        train_steps(each, 1)
    sparse, computed = measure_memory(trainer.model, trainer.optimizer, trainer.average.model)
    held = [*trainer.average.model.parameters(), *trainer.average.model.buffers()]
    assert sparse.average == sum(tensor.nbytes for tensor in held)
    assert computed == measure_memory(twin.model, twin.optimizer, twin.average.model)[0]
    assert sparse.total - sparse.average == measure_memory(trainer.model, trainer.optimizer)[0].total


# -- mixed images


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.3, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_mixed_images_and_their_shares(mixup, cutmix):
    torchvision_or_skip()
    mix = build_mixing(DataConfig(mixup=mixup, cutmix=cutmix), classes=7, seed=1)
    kinds = set()
    before = torch.get_rng_state()
    for step in range(20):
        labels = torch.tensor([0, 1, 2, 3])
        images = torch.eye(7)[labels].view(4, 7, 1, 1).expand(4, 7, 6, 6).double()  # a channel for each class
        mixed, shares = mix(images, labels, step)
        assert shares.dtype == mixed.dtype == torch.float64
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(4).double())
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), shares, atol=1e-6, rtol=0)  # pixels say the same
        kinds.add("cutmix" if set(mixed.flatten().tolist()) <= {0.0, 1.0} else "mixup")
    assert torch.equal(torch.get_rng_state(), before)
    assert kinds >= {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}


def test_no_mixing_where_none_is_asked_for():
    assert build_mixing(DataConfig(), 10, 0) is None


def test_label_smoothing_of_mixed_labels():
    torchvision_or_skip()
    trainer = Trainer(make_config(data={"mixup": 1.0}, optimizer={"label_smoothing": 0.1}, growth="static"))
    images, labels = next(iter(trainer.loader))
    mixed, shares = trainer.mixing(images, labels, trainer.step)
    with torch.no_grad():
        logits = trainer.model(mixed)
    expected = -((0.9 * shares + 0.1 / 10) * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    trainer.train_step(images, labels)
    assert trainer.totals.loss / len(images) == pytest.approx(float(expected), rel=1e-5)
    assert trainer.totals.correct == int((logits.argmax(dim=1) == shares.argmax(dim=1)).sum())


# -- clipping and decay


@pytest.mark.parametrize(("dtype", "ghosts"), [("float32", False), ("float16", False), ("float32", True)])
def test_gradients_are_clipped_to_their_length(dtype, ghosts):
    def step(clip):
        trainer = Trainer(
            make_config(
                optimizer={"clip": clip, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0},
                growth="static",
                tost={"ghost_skips": ghosts},
                run={"dtype": dtype},
            )
        )
        if trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 16.0})
        before = [parameter.detach().clone() for parameter in trainer.trained()]
        train_steps(trainer, 1)
        moves = [old - new for old, new in zip(before, trainer.trained(), strict=True)]
        return torch.cat([move.detach().flatten() for move in moves])

    free, clipped = step(0.0), step(0.01)
    assert free.norm() > 0.02
    torch.testing.assert_close(clipped, free * 0.01 / free.norm(), atol=1e-6, rtol=1e-3)


def test_all_decays_where_asked_for():
    trainer = Trainer(make_config(optimizer={"decay": "all", "nesterov": False, "weight_decay": 0.25}))
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.25, 0.25]
    assert not trainer.optimizer.defaults["nesterov"]
    assert len(split_parameters(trainer.model)[1]) == len(trainer.optimizer.param_groups[1]["params"])


# -- dev set and resuming


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("stop", [3, 9])
def test_resumed_with_all_of_it_to_the_bit(stop, mixing, tmp_path):
    if mixing:
        torchvision_or_skip()
    cifar_archive(tmp_path, 10)
    config = make_config(
        data={"name": "cifar10", "root": tmp_path, "batch_size": 9, "held_out": 10}
        | ({"mixup": 0.2, "cutmix": 1.0} if mixing else {}),
        optimizer={"ema": 0.9, "clip": 1.0, "label_smoothing": 0.1},
    )
    whole, first, second = Trainer(config), Trainer(config), Trainer(config)
    assert len(whole.loader) == 7
    train_steps(whole, 13)
    train_steps(first, stop)
    save_checkpoint(tmp_path / "x", first.state_dict())
    torch.rand(5)
    second.load_state_dict(load_checkpoint(tmp_path / "x"))
    train_steps(second, 13 - stop)
    assert_same_state(whole.state_dict(), second.state_dict())


def test_dev_accuracy_a_epoch_and_the_report_at_the_best(tmp_path, capsys):
    arguments = ["--width", "4", "--depth", "8", "--batch-size", "128", "--epochs", "3", "--no-plots", "--threads", "1"]
    assert main(["train", *arguments, "--held-out", "200", "--output", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["dev_accuracy"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_dev"] == {
        "epoch": int(best["epoch"]),
        "dev_accuracy": float(best["dev_accuracy"]),
        "test_accuracy": float(best["test_accuracy"]),
        "last_dev_accuracy": float(rows[-1]["dev_accuracy"]),
    }
    assert summary["steps"] == 3 * ((1438 - 200) // 128)
    assert "test accuracy at the best dev epoch" in output
    assert f"dev {float(rows[-1]['dev_accuracy']):.1%}" in output


def test_a_run_goes_on_with_its_data_elsewhere(tmp_path):
    (tmp_path / "here").mkdir()
    cifar_archive(tmp_path / "here", 10)
    arguments = [
        "--data",
        "cifar10",
        "--width",
        "4",
        "--depth",
        "8",
        "--batch-size",
        "16",
        "--epochs",
        "1",
        "--no-plots",
    ]
    run = ["--output", str(tmp_path / "run"), "--stop-after", "2"]
    assert main(["train", *arguments, *run, "--data-root", str(tmp_path / "here")]) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert main(["train", "--resume", str(tmp_path / "run"), "--stop-after", "9"]) == 1
    go_on = ["--resume", str(tmp_path / "run"), "--data-root", str(tmp_path / "there"), "--stop-after", "9"]
    assert main(["train", *go_on]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_missing_data_is_said_in_a_line(tmp_path, capsys):
    assert main(["train", "--data", "cifar100", "--data-root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sparsekern train: no CIFAR-100 in ")
    assert "cifar-100-python.tar.gz" in error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(held_out=-1), "held_out must be at least 0"),
        (lambda: DataConfig(mixup=-0.1), "mixup must be at least 0"),
        (lambda: DataConfig(workers=-1), "workers must be at least 0"),
        (lambda: OptimizerConfig(ema=1.0), "ema must be from 0 to below 1, got 1.0"),
        (lambda: OptimizerConfig(clip=-1.0), "clip must be at least 0"),
        (lambda: OptimizerConfig(decay="none"), "decay must be one of weights, all, got 'none'"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
