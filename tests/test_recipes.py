"""Every recipe trains, two epochs on a few images in the form in which its data set is distributed."""

import json

import pytest
import torch
from archives import (
    cifar_archive,
    cifar_files,
    imagenet_folders,
    tiny_imagenet_archive,
    tiny_imagenet_files,
    torchvision_or_skip,
)

from sparsekern.cli import main
from sparsekern.recipes import load_recipe, recipe_module, recipe_names
from sparsekern.training.config import TrainConfig

IMAGES, HELD_OUT = 8, 2
DIGITS_BATCH = 512  # two batches an epoch, as of the others


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All data sets, with `IMAGES` training images and a few test images each."""
    folder = tmp_path_factory.mktemp("data")
    files = cifar_files(10, images=IMAGES // 4)
    files["data_batch_5"] = {**files["data_batch_5"], "data": files["data_batch_5"]["data"][:0], "labels": []}
    cifar_archive(folder, 10, files)
    cifar_archive(folder, 100, {**cifar_files(100, IMAGES), "test": cifar_files(100, images=4)["test"]})
    tiny_imagenet_archive(folder, tiny_imagenet_files(classes=4, train=IMAGES // 4, val=4))
    return folder


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains(name, root, tmp_path):
    config = load_recipe(name)
    if config.data.name == "imagenet":
        torchvision_or_skip()
        imagenet_folders(tmp_path / "data", classes=2, train=IMAGES // 2, val=1)
        root = tmp_path / "data"
    held_out = HELD_OUT if config.data.held_out else 0
    batch = DIGITS_BATCH if config.data.name == "digits" else (IMAGES - held_out) // 2
    extra = ["--held-out", str(held_out)]
    if name.startswith("tost"):
        extra += ["--lrsi-iterations", "2"]
    small = ["--epochs", "2", "--batch-size", str(batch), "--interval", "1", "--workers", "0", *extra]
    run = ["--threads", "1", "--data-root", str(root), "--output", str(tmp_path / "run"), "--no-plots"]
    threads = torch.get_num_threads()
    try:
        assert main(["train", "--recipe", name, *small, *run]) == 0
    finally:
        torch.set_num_threads(threads)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    saved = TrainConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text()))
    assert summary["steps"] == 4
    assert summary["nnz"] == round(config.sparsity.density * summary["dense_weights"])
    assert (saved.model, saved.sparsity) == (config.model, config.sparsity)
    assert saved.optimizer == config.optimizer
    assert (summary["best_dev"] is not None) == (held_out > 0)


def test_every_recipe_says_what_it_is():
    assert "gse-cifar10-resnet56" in recipe_names()
    for name in recipe_names():
        text = recipe_module(name).__doc__
        assert "arXiv" in text
        data = "" if recipe_module(name).RECIPE.data.name == "digits" else " --data-root DATA"
        assert f"sparsekern train --recipe {name}{data}" in text
        assert text.splitlines()[0].endswith(".")


def test_the_paper_s_numbers():
    config = load_recipe("gse-cifar100-resnet56")
    assert (config.model.depth, config.model.shortcut, config.data.name) == (56, "A", "cifar100")
    assert [round(200 * share) for share in config.optimizer.milestones] == [80, 120]
    assert round(config.growth.end * config.run.epochs) == 120


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert ["gse-cifar10-resnet56", "GSE on CIFAR-10 with ResNet-56."] in [line.split(maxsplit=1) for line in lines]
    assert main(["recipes", "gse-cifar10-resnet56"]) == 0
    shown = capsys.readouterr().out
    assert "GSE uniform  91.0  89.8  87.0" in shown
    assert "growth.interval = 1000" in shown
    assert main(["recipes", "nothing"]) == 1
    assert "recipe 'nothing' is not known" in capsys.readouterr().err


def test_options_change_a_recipe_and_a_run_is_one(root, tmp_path, capsys):
    base = ["train", "--data-root", str(root), "--batch-size", "8", "--depth", "8", "--no-plots", "--stop-after", "1"]
    first = ["--recipe", "gse-cifar10-resnet56", "--density", "0.2", "--seed", "3", "--output", str(tmp_path / "one")]
    assert main([*base, *first]) == 0
    saved = TrainConfig.from_dict(json.loads((tmp_path / "one" / "config.json").read_text()))
    recipe = load_recipe("gse-cifar10-resnet56")
    assert set(saved.differences(recipe)) == {
        "model.depth",
        "sparsity.density",
        "run.seed",
        "data.batch_size",
    }
    for number, path in enumerate((tmp_path / "one", tmp_path / "one" / "config.json")):
        again = tmp_path / f"again{number}"
        assert main(["train", "--recipe", str(path), "--stop-after", "1", "--output", str(again)]) == 0
        assert not TrainConfig.from_dict(json.loads((again / "config.json").read_text())).differences(saved)
        assert load_recipe(str(path)).run.output is None
        assert load_recipe(str(path)).run.stop_after is None
    capsys.readouterr()
    assert main(["train", "--recipe", "gse"]) == 1
    assert "recipe 'gse' is not known; expected one of " in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "one"), "--recipe", "gse-cifar10-resnet56"]) == 1
    assert "takes no --recipe gse-cifar10-resnet56" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("[1]")
    assert main(["train", "--recipe", str(tmp_path / "config.json")]) == 1
    assert "cannot be read as a run's config.json" in capsys.readouterr().err
