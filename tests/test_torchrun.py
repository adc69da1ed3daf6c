"""`torchrun -m sparsekern train`: the same run as one process's, resumed bit for bit."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsekern.commands.train import train
from sparsekern.data.loader import BatchLoader
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.load import load_model

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--model mlp --width 64 --epochs 2 --batch-size 150 --growth gse-grabo --interval 3 --dtype float64 --no-plots"
)


def torchrun(folder, *words):
    """What two processes print."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, "-m", "sparsekern", "train", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return [
            {key: row[key] for key in ("step", "loss", "test_loss", "test_accuracy")} for row in csv.DictReader(file)
        ]


def updates(run):
    """What happened to the edges, to the bit, and the gradients' norms, which are sums in another order."""
    with (run / "topology.csv").open() as file:
        rows = list(csv.DictReader(file))
    norms = [float(row.pop("grad_norm")) for row in rows]
    return rows, norms


def test_two_processes_train_as_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    options = OPTIONS.split()
    assert train([*options, "--threads", "1", "--output", "one"]) == 0
    said = torchrun(tmp_path, *options, "--output", "two", "--stop-after", "12")
    assert said.count("run folder: two") == 1  # the first process alone prints
    assert train(["--resume", "two"]) == 1
    assert (
        "it is of a run on 2 process(es), here there are 1: go on with torchrun --nproc-per-node=2"
        in capsys.readouterr().err
    )
    torchrun(tmp_path, "--resume", "two", "--stop-after", "None")
    for row, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert {key: float(value) for key, value in row.items()} == pytest.approx(
            {key: float(value) for key, value in other.items()}, rel=1e-9
        )
    (edges, norms), (other_edges, other_norms) = updates(tmp_path / "one"), updates(tmp_path / "two")
    assert edges == other_edges
    assert norms == pytest.approx(other_norms, rel=1e-9)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    assert len(load_checkpoint(tmp_path / "two" / "checkpoint.safetensors")["processes"]) == 2
    assert load_model(tmp_path / "two")(torch.zeros(1, 1, 8, 8, dtype=torch.float64)).shape == (1, 10)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_a_batch(parts):
    """The processes' parts, in their order, are the batch that one process has, augmentation and all."""
    images = torch.arange(40.0).view(40, 1, 1, 1).expand(-1, 1, 4, 4) + torch.arange(16.0).view(4, 4)
    labels = torch.arange(40)

    def batches(part):
        loader = BatchLoader(images, labels, 7, seed=3, shift=1, flip=True)
        loader.take_part(*part)
        return list(loader)

    whole = batches((0, 1))
    shared = [batches((number, parts)) for number in range(parts)]
    for at, (wanted, wanted_labels) in enumerate(whole):
        assert torch.equal(torch.cat([each[at][0] for each in shared]), wanted)
        assert torch.equal(torch.cat([each[at][1] for each in shared]), wanted_labels)
    with pytest.raises(ValueError, match="batch_size must be at least 8, one for each process, got 7"):
        BatchLoader(images, labels, 7, seed=3).take_part(0, 8)
