import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sparsekern.cli import main
from sparsekern.commands.train import new_config
from sparsekern.growth import find_sparse_layers
from sparsekern.masks import load_masks, magnitude, save_masks
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.config import ModelConfig, RunConfig, SparsityConfig, TrainConfig
from sparsekern.training.folder import RunFolder
from sparsekern.training.load import load_model
from sparsekern.training.rounds import TicketRounds
from sparsekern.training.topology import sparsity_of_mask
from sparsekern.training.trainer import Trainer

pytest.importorskip("sklearn")
NETWORK = ["--model", "resnet", "--width", "4", "--depth", "8"]
QUICK = ["--epochs", "2", "--batch-size", "256", "--threads", "1"]
MODEL = ModelConfig("resnet", width=4, depth=8)


@pytest.fixture(autouse=True)
def own_folder(one_thread, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def find(method, *options, density="0.1", output="found.st"):
    code = main(["mask", "--method", method, "--density", density, "--output", output, *NETWORK, *options])
    assert code == 0
    return load_masks(output)


def dense_model(seed=0):
    return Trainer(TrainConfig(model=MODEL, sparsity=SparsityConfig(dense=True), run=RunConfig(seed=seed))).model


@pytest.mark.parametrize("method", ["random", "magnitude", "snip", "grasp", "synflow", "lottery"])
def test_found_masks_are_trained(method, capsys):
    options = {"lottery": QUICK, "synflow": ["--rounds", "5"]}.get(method, [])
    masks = find(method, *options, *(["--rounds", "2"] if method == "lottery" else []))
    assert masks.method == method
    assert masks.nnz == round(0.1 * masks.size)
    assert masks.settings["seed"] == 0
    shown = capsys.readouterr().out
    assert f"{masks.nnz:,}" in shown
    assert "sparsekern train --mask found.st" in shown
    for growth in ("static", "gse-grabo"):
        assert main(["train", "--mask", "found.st", *NETWORK, *QUICK, "--growth", growth, "--interval", "3"]) == 0
        folder = f"runs/resnet-{growth}-found-0.1-0"
        layers = find_sparse_layers(load_model(folder))
        assert list(layers) == list(masks)
        same = [layers[name].pattern.equal(pattern) for name, pattern in masks.items()]
        assert all(same) if growth == "static" else not all(same)
        assert sum(layer.nnz for layer in layers.values()) == masks.nnz
        with open(f"{folder}/config.json") as file:
            sparsity = json.load(file)["sparsity"]
        assert (sparsity["density"], sparsity["mask"]) == (0.1, "found.st")


def test_the_network_is_the_trainers_own():
    for seed in (0, 3):
        masks = find("magnitude", "--seed", str(seed), output=f"{seed}.st")
        expected = magnitude(dense_model(seed), 0.1)
        assert all(masks[name].equal(expected[name]) for name in expected)


def test_a_run_begins_with_the_values_in_the_file():
    masks = find("magnitude", "--keep-weights", "--exclude", "head*")
    assert "head" not in masks
    trainer = Trainer(TrainConfig(model=MODEL, sparsity=sparsity_of_mask("found.st")))
    model = dense_model()
    expected = masks.with_values(model).state
    masks.apply(model, keep_weights=True)
    state = trainer.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    drawn = find("magnitude", output="bare.st")
    assert drawn.state is None
    other = Trainer(TrainConfig(model=MODEL, sparsity=sparsity_of_mask("bare.st")))
    assert other.config.sparsity.exclude == ()
    assert not torch.equal(other.model.head.weight[:5], dense_model().head.weight.view(-1)[:5])


def test_resume_needs_no_mask_file(capsys):
    find("snip")
    run = ["train", "--mask", "found.st", *NETWORK, *QUICK, "--no-plots", "--interval", "2"]
    assert main([*run, "--output", "whole"]) == 0
    assert main([*run, "--output", "stopped", "--stop-after", "6"]) == 0
    shutil.move("found.st", "gone.st")
    assert main(["train", "--resume", "stopped", "--stop-after", "1000"]) == 0
    one, other = (load_checkpoint(Path(name) / "checkpoint.safetensors") for name in ("whole", "stopped"))
    assert one["model"].keys() == other["model"].keys()
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    load_model("stopped")
    capsys.readouterr()
    assert main([*run, "--output", "new"]) == 1
    assert "no mask file at found.st" in capsys.readouterr().err
    assert main(["train", "--resume", "stopped", "--mask", "gone.st"]) == 1
    assert "sparsity.mask is 'found.st', not 'gone.st'" in capsys.readouterr().err


def test_the_dense_twin_of_a_masked_run(capsys):
    find("random")
    assert main(["train", "--mask", "found.st", *NETWORK, *QUICK, "--no-plots", "--twin", "--epochs", "1"]) == 0
    assert "dense twin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "0.2"], "density is 0.2, but the masks in found.st have 0.1"),
        (["--width", "8"], r"found.st does not fit: the masks' layer 'stem' has a weight of shape (4, 1, 3, 3)"),
        (["--exclude", "head*"], "the masks have a layer 'head', which the model has not or exclude leaves out"),
        (["--depth", "14"], "the masks in found.st have no layer 'blocks.3.conv1': exclude it"),
        (["--mask", "nothing.st"], "no mask file at nothing.st"),
    ],
)
def test_contradictions_are_errors(options, message, capsys):
    find("magnitude")
    assert main(["train", "--mask", "found.st", *NETWORK, *QUICK, *options]) == 1
    assert message in capsys.readouterr().err


def test_distribution_is_the_files(capsys):
    find("random", "--distribution", "uniform")
    with pytest.raises(ValueError, match="distribution does not apply to a mask file, got 'er'"):
        dataclasses.replace(sparsity_of_mask("found.st"), distribution="er")
    with pytest.raises(SystemExit):
        main(["train", "--mask", "found.st", *NETWORK, "--distribution", "er"])
    shown = " ".join((capsys.readouterr().err).replace("│", " ").split())
    assert "distribution does not apply to a mask file" in shown


def test_config_with_a_mask_survives_json():
    find("random")
    config = TrainConfig(model=MODEL, sparsity=sparsity_of_mask("found.st"))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))).sparsity.mask == config.sparsity.mask
    assert config.label == "resnet-gse-grabo-found-0.1-0"


def test_output_is_not_overwritten(capsys):
    find("random")
    before = Path("found.st").read_bytes()
    assert main(["mask", "--output", "found.st", *NETWORK]) == 1
    assert "output found.st exists: choose another" in capsys.readouterr().err
    assert Path("found.st").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "0.0001"], "density 0.0001 gives 0 nonzeros for 8 layers"),
        (["--exclude", "foot"], "exclude pattern 'foot' matches no"),
        (["--method", "lottery", "--rewind", "999", *QUICK], "rewind must be below the 10 steps of training, got 999"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(options, message, capsys):
    assert main(["mask", "--output", "x.st", *NETWORK, *options]) == 1
    assert message in capsys.readouterr().err
    assert not Path("x.st").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "snap"], "snip"),
        (["--density", "2"], "density must be above 0 and at most 1, got 2.0"),
        (["--batches", "0"], "batches must be at least 1"),
        (["--share", "1"], "share must be above 0 and below 1, got 1.0"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--rewind", "-1"], "rewind must be at least 0"),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit):
        main(["mask", "--output", "x.st", *options])
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())


@pytest.mark.parametrize("rewind", [3, 5, 7])
def test_a_round_goes_on_where_the_warm_up_ended(rewind):
    """With the warm-up's own model and no momentum, warm-up and round together are the plain run."""
    config = TrainConfig(model=MODEL, sparsity=SparsityConfig(dense=True), run=RunConfig(epochs=2))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=256),
        optimizer=dataclasses.replace(config.optimizer, momentum=0.0, warmup_epochs=1),
    )
    plain = Trainer(config)
    for _ in range(2):
        for images, labels in plain.loader:
            plain.train_step(images, labels)
        plain.finish_epoch()
    lines = []

    class Listener:
        def print(self, line, **options):
            lines.append(line)

    rounds = TicketRounds(config, rewind, Listener())
    model = dense_model()
    rounds.warm_up(model)
    rounds.train(model)
    for key, value in plain.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert lines[0].startswith("round 1: dense, test accuracy ")


def test_a_ticket_holds_the_rewound_values():
    masks = find("lottery", *QUICK, "--rounds", "1", "--rewind", "2")
    config = TrainConfig(model=MODEL, sparsity=SparsityConfig(dense=True), run=RunConfig(epochs=2))
    trainer = Trainer(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=256)))
    for images, labels in trainer.loader:
        trainer.train_step(images, labels)
        if trainer.step == 2:
            break
    expected = masks.with_values(trainer.model).state
    assert all(torch.equal(masks.state[key], value) for key, value in expected.items())
    save_masks("again.st", masks)
    sparse = Trainer(TrainConfig(model=MODEL, sparsity=sparsity_of_mask("again.st"))).model
    assert torch.equal(sparse.norm.running_mean, trainer.model.norm.running_mean)


def test_the_printed_command_trains_on_the_masks(capsys):
    find("random", "--exclude", "stem", output="with blank.st")
    *_, command = capsys.readouterr().out.strip().splitlines()
    words = shlex.split(command)
    assert words[:2] == ["sparsekern", "train"]
    assert main([*words[1:], *QUICK, "--epochs", "1", "--no-plots", "--output", "run"]) == 0
    assert RunFolder(Path("run")).load_config().sparsity.exclude == ("stem",)


def test_another_density_is_named_before_a_comparison_starts(capsys):
    find("random")
    shared = ["--mask", "found.st", *NETWORK, *QUICK]
    assert main(["compare", "--densities", "0.1", "0.2", "--output", "grid", *shared]) == 1
    message = "run 0.2-seed=0 cannot be made: density is 0.2, but the masks in found.st have 0.1"
    assert capsys.readouterr().err == f"sparsekern compare: {message}\n"
    assert not Path("grid").exists()
    assert main(["train", "--density", "1", *shared]) == 1
    assert "density is 1, but the masks in found.st have 0.1" in capsys.readouterr().err
    assert new_config(["--dense", "--density", "0.2", *shared]).sparsity.dense


def test_a_recipe_without_its_mask():
    find("random")
    assert main(["train", "--mask", "found.st", *NETWORK, *QUICK, "--no-plots", "--output", "run"]) == 0
    assert new_config(["--recipe", "run"]).sparsity.mask == Path("found.st")
    without = new_config(["--recipe", "run", "--mask", "None", "--density", "0.2"])
    assert (without.sparsity.mask, without.sparsity.density) == (None, 0.2)
