import dataclasses
import json

import pytest
import torch
from test_training import assert_same_state, make_config, train_steps

from sparsekern.cli import main
from sparsekern.commands.train import parse
from sparsekern.recipes.tost import RECIPE
from sparsekern.testing import forbid_dense
from sparsekern.training.checkpoint import load_checkpoint, save_checkpoint
from sparsekern.training.config import OptimizerConfig, TostConfig, TrainConfig
from sparsekern.training.folder import RunFolder
from sparsekern.training.load import load_model
from sparsekern.training.run import build
from sparsekern.training.trainer import Trainer

ALL = {"ghost_neurons": True, "ghost_skips": True, "lrsi": True, "lrsi_iterations": 4}
SMOOTHED = {"warmup_epochs": 0.5, "label_smoothing": 0.1, "label_smoothing_over": "others"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("growth", ["static", "set", "rigl", "gse-grabo"])
@pytest.mark.parametrize(
    "tost",
    [
        {"ghost_neurons": True},
        {"ghost_skips": True},
        {"ghost_skips": True, "ghost_branch": "free"},
        {"lrsi": True, "lrsi_iterations": 3},
        ALL,
    ],
)
def test_every_ingredient_trains_under_every_growth(tost, growth):
    config = make_config("resnet", growth=growth, tost=tost, optimizer=SMOOTHED)
    trainer, plain = Trainer(config), Trainer(dataclasses.replace(config, tost=TostConfig()))
    nnz, keys = trainer.nnz, list(plain.model.state_dict())
    assert nnz == plain.nnz
    assert (trainer.rescale() is not None) == bool(tost.get("lrsi"))
    updates = train_steps(trainer, trainer.total_steps)
    assert trainer.tost is None or trainer.tost.over
    assert growth == "static" or sum(row["replaced"] for row in updates) > 0
    assert list(trainer.model.state_dict()) == keys
    groups, plain_groups = (each.optimizer.state_dict()["param_groups"] for each in (trainer, plain))
    assert [group["params"] for group in groups] == [group["params"] for group in plain_groups]
    train_steps(plain, plain.total_steps)
    assert trainer.optimizer.state_dict()["state"].keys() == plain.optimizer.state_dict()["state"].keys()
    trained = trainer.model.state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in plain.model.state_dict().items())


@pytest.mark.parametrize("stop", [3, 8, 9, 14])
def test_a_run_resumes_to_the_bit_in_the_ghost_phase_and_after(stop, tmp_path):
    config = make_config("resnet", tost=ALL | {"ghost_end": 0.4}, optimizer=SMOOTHED, run={"epochs": 2})
    assert round(0.4 * Trainer(config).total_steps) == 9
    whole, first, second = Trainer(config), Trainer(config), Trainer(config)
    for trainer in (whole, first):
        trainer.rescale()
    train_steps(whole, stop + 4)
    train_steps(first, stop)
    assert first.tost.over == (stop >= 9)
    save_checkpoint(tmp_path / "x", first.state_dict())
    torch.rand(5)
    second.load_state_dict(load_checkpoint(tmp_path / "x"))
    assert_same_state(first.state_dict(), second.state_dict())
    assert second.rescale() is None
    train_steps(second, 4)
    assert_same_state(whole.state_dict(), second.state_dict())


def test_rescaling_does_not_touch_the_order_of_the_data():
    config = make_config("resnet", tost={"lrsi": True, "lrsi_iterations": 9})
    trainer, plain = Trainer(config), Trainer(dataclasses.replace(config, tost=TostConfig()))
    trainer.rescale()
    assert_same_state(trainer.loader.state_dict(), plain.loader.state_dict())
    with torch.no_grad():
        for buffer, expected in zip(trainer.model.buffers(), plain.model.buffers(), strict=True):
            assert torch.equal(buffer, expected)


def test_nothing_dense_is_made(tmp_path):
    config = make_config("resnet", density=0.05, tost=ALL, data={"batch_size": 37}, optimizer=SMOOTHED)
    trainer, other = Trainer(config), Trainer(config)
    with forbid_dense(trainer.model, batch_sizes=(37, len(trainer.data.test_images))):
        trainer.rescale()
        train_steps(trainer, 4)
        trainer.evaluate()
        save_checkpoint(tmp_path / "x", trainer.state_dict())
    with forbid_dense(other.model, batch_sizes=(37,)):
        other.load_state_dict(load_checkpoint(tmp_path / "x"))


def test_a_model_from_the_ghost_phase_can_be_loaded(tmp_path):
    config = make_config("resnet", tost=ALL, run={"output": tmp_path / "run"})
    folder, trainer = RunFolder.create(config), build(config)
    train_steps(trainer, 2)
    folder.save(trainer)
    model, images = load_model(tmp_path / "run"), trainer.data.test_images
    with torch.no_grad():
        assert torch.equal(model(images), trainer.model.eval()(images))


def test_a_run_with_ghosts_is_not_exported_and_one_that_had_them_needs_no_data(tmp_path, monkeypatch, capsys):
    config = make_config("resnet", tost=ALL, run={"output": tmp_path / "run"})
    folder, trainer = RunFolder.create(config), build(config)
    train_steps(trainer, 2)
    folder.save(trainer)
    assert main(["export", str(tmp_path / "run")]) == 1
    assert "run is at step 2, and its ghosts are gone after step" in capsys.readouterr().err
    trainer.tost.finish()
    folder.save(trainer)
    monkeypatch.setattr("sparsekern.training.trainer.build_data", lambda config: pytest.fail("the data set was read"))
    model, images = load_model(tmp_path / "run"), trainer.data.test_images
    with torch.no_grad():
        assert torch.equal(model(images), trainer.model.eval()(images))
    assert main(["export", str(tmp_path / "run")]) == 0


def test_the_average_begins_when_the_ghosts_are_gone():
    trainer = Trainer(make_config("resnet", tost={"ghost_neurons": True}, optimizer={"ema": 0.9}))
    while not trainer.tost.over:
        assert trainer.average is None
        train_steps(trainer, 1)
    assert trainer.average.updates == 0
    train_steps(trainer, 1)
    assert trainer.average.updates == 1
    kinds = [[type(module) for module in model.modules()] for model in (trainer.model, trainer.average.model)]
    assert kinds[0] == kinds[1]


def test_every_ingredient_has_a_flag():
    flags = ["--ghost-neurons", "--ghost-skips", "--lrsi", "--ghost-end", "0.25", "--ghost-neuron", "mish"]
    flags += ["--ghost-beta", "2", "--ghost-branch", "free", "--ghost-branch-density", "0.5", "--lrsi-iterations", "7"]
    config = parse([*flags, "--label-smoothing", "0.1", "--label-smoothing-over", "others"], TrainConfig())
    assert config.tost == TostConfig(True, True, True, 0.25, "mish", 2.0, "free", 0.5, 7)
    assert (config.optimizer.label_smoothing, config.optimizer.label_smoothing_over) == (0.1, "others")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    without = parse(["--no-ghost-skips", "--no-lrsi"], RECIPE)
    assert (without.tost.ghost_neurons, without.tost.ghost_skips, without.tost.lrsi) == (True, False, False)


def test_the_recipe_is_the_default_run_with_all_ingredients():
    assert (RECIPE.tost.ghost_neurons, RECIPE.tost.ghost_skips, RECIPE.tost.lrsi) == (True, True, True)
    assert (RECIPE.optimizer.label_smoothing, RECIPE.optimizer.label_smoothing_over) == (0.1, "others")
    assert TostConfig() == TostConfig(ghost_neurons=False, ghost_skips=False, lrsi=False)
    assert dataclasses.replace(RECIPE, tost=TostConfig(), optimizer=OptimizerConfig()) == TrainConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ghost_end": 1.5}, r"ghost_end must be from 0 to 1, got 1\.5"),
        ({"ghost_neuron": "relu"}, "ghost_neuron must be one of swish, gelu, mish, elu, softplus, got 'relu'"),
        ({"ghost_beta": 0.0}, "ghost_beta must be above 0 and finite"),
        ({"ghost_branch": "dense"}, "ghost_branch must be one of sparse, free, got 'dense'"),
        ({"ghost_branch_density": 0.0}, "ghost_branch_density must be above 0 and at most 1"),
        ({"lrsi_iterations": 0}, "lrsi_iterations must be at least 1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        TostConfig(**options)
    with pytest.raises(ValueError, match="label_smoothing_over must be one of all, others"):
        OptimizerConfig(label_smoothing_over="none")
