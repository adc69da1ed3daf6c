import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from sparsekern.cli import main
from sparsekern.training.checkpoint import load_checkpoint

TINY = ["train", "--model", "resnet", "--width", "4", "--depth", "8", "--epochs", "3", "--batch-size", "128"]
TINY += ["--density", "0.2", "--interval", "4", "--threads", "1"]
STEPS_PER_EPOCH = 1438 // 128


def sparsekern(*arguments, folder, check=True):
    return subprocess.run(
        [sys.executable, "-m", "sparsekern", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
    )


def assert_same(left, right, path=""):
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            if key != "seconds":
                assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}/{index}")
    else:
        assert left == right, path


def rows_but_for_time(path):
    with path.open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a break, with its twin."""
    folder = tmp_path_factory.mktemp("whole")
    result = sparsekern(*TINY, "--twin", folder=folder)
    return folder / "runs" / "resnet-gse-grabo-0.2-0", result.stdout


def test_run_leaves_its_folder_and_a_table(whole):
    path, output = whole
    assert {file.name for file in path.iterdir()} - {"tensorboard"} == {
        "config.json",
        "metrics.csv",
        "topology.csv",
        "layers.csv",
        "resources.csv",
        "checkpoint.safetensors",
        "checkpoint-22.safetensors",
        "summary.json",
        "accuracy.png",
        "density.png",
        "replaced.png",
        "dense",
    }
    for line in ("test accuracy", "indices", "optimizer state", "dense twin", "time a step"):
        assert line in output
    metrics = rows_but_for_time(path / "metrics.csv")
    assert [int(row["epoch"]) for row in metrics] == [1, 2, 3]
    assert float(metrics[-1]["loss"]) < float(metrics[0]["loss"])
    topology = rows_but_for_time(path / "topology.csv")
    assert sorted({int(row["step"]) for row in topology}) == list(range(4, round(0.75 * 33), 4))
    summary = json.loads((path / "summary.json").read_text())
    assert summary["test_accuracy"] == float(metrics[-1]["test_accuracy"])
    assert summary["nnz"] == round(0.2 * summary["dense_weights"])
    twin = json.loads((path / "dense" / "summary.json").read_text())
    assert summary["dense_memory"] == twin["memory"]
    for picture in path.glob("*.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert picture.stat().st_size > 5000


@pytest.mark.parametrize("stop", [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 3])
def test_stop_and_resume_in_another_process_is_the_same_to_the_bit(whole, tmp_path, stop):
    path, _ = whole
    stopped = sparsekern(*TINY, "--output", "run", "--no-plots", "--stop-after", stop, folder=tmp_path)
    assert f"stopped at step {stop} of 33" in stopped.stdout
    assert "sparsekern train --resume run" in stopped.stdout
    state = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert state["progress"]["step"] == stop
    sparsekern("train", "--resume", "run", "--stop-after", 1000, folder=tmp_path)
    resumed, expected = (load_checkpoint(each / "checkpoint.safetensors") for each in (tmp_path / "run", path))
    assert resumed.keys() == expected.keys()
    for part in resumed.keys() - {"config"}:
        assert_same(resumed[part], expected[part], part)
    for name in ("metrics.csv", "topology.csv", "layers.csv"):
        assert rows_but_for_time(tmp_path / "run" / name) == rows_but_for_time(path / name)


def test_interrupt_saves_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsekern", *TINY, "--epochs", "2000", "--output", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "sparsekern train --resume run" in output
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["progress"]["step"]
    assert saved >= STEPS_PER_EPOCH
    assert f"stopped at step {saved} of" in output


def test_existing_output_is_not_overwritten(whole, capsys):
    path, _ = whole
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert main([*TINY, "--output", str(path)]) == 1
    assert f"--resume {path}" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_default_output_is_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*TINY, "--no-plots", "--stop-after", "1"]) == 0
    assert sorted(os.listdir("runs")) == ["resnet-gse-grabo-0.2-0", "resnet-gse-grabo-0.2-0-2"]


def test_resume_keeps_the_runs_own_configuration(whole, capsys):
    path, _ = whole
    assert main(["train", "--resume", str(path), "--lr", "0.5"]) == 1
    assert "optimizer.lr is None, not 0.5" in capsys.readouterr().err


def test_resume_takes_no_other_output(whole, capsys):
    path, _ = whole
    assert main(["train", "--resume", str(path), "--output", "elsewhere"]) == 1
    assert "it takes no --output" in capsys.readouterr().err


def test_a_moved_run_and_its_twin_are_still_whole(whole, tmp_path, capsys):
    path, _ = whole
    shutil.copytree(path, tmp_path / "moved")
    assert main(["train", "--resume", str(tmp_path / "moved")]) == 0
    assert "dense twin" in capsys.readouterr().out


def test_nothing_to_resume(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path)]) == 1
    assert "it has no config.json" in capsys.readouterr().err


def test_damaged_checkpoint_is_said_in_a_line(whole, tmp_path, capsys):
    path, _ = whole
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    (tmp_path / "checkpoint.safetensors").write_bytes((path / "checkpoint.safetensors").read_bytes()[:-7])
    assert main(["train", "--resume", str(tmp_path)]) == 1
    assert "truncated or damaged" in capsys.readouterr().err


def test_without_matplotlib_a_line_and_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--epochs", "1"]) == 0
    assert "sparsekern[plots]" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command given"),
        (["fly"], "unknown command 'fly'"),
        (["train", "--density", "0"], "density must be above 0"),
        (["train", "--model", "resnet", "--heads", "2"], "heads does not apply to model resnet"),
        (["train", "--growth", "gse"], "gse-uniform"),
    ],
)
def test_bad_command_lines(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())


def test_device_that_is_not_there(capsys):
    assert main([*TINY, "--device", "cuda:99"]) == 1
    assert "device 'cuda:99' cannot be used" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out


def test_a_reader_that_left_is_no_error(tmp_path):
    """`sparsekern report --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sparsekern", "report", "--help"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, timeout=120)
    os.close(writing)
    assert done.stderr == b""
