import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from sparsekern.cli import main
from sparsekern.compare import capacity, machine
from sparsekern.compare.capacity import Capacity
from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Grid
from sparsekern.compare.lock import FolderLock
from sparsekern.compare.page import accuracy_table, render, size_table
from sparsekern.compare.results import Result, write_csv
from sparsekern.compare.spread import mean_and_deviation, show_mean
from sparsekern.training.checkpoint import load_checkpoint

TINY = ["--model", "mlp", "--width", "16", "--batch-size", "256", "--threads", "1"]
STATIC = ["--methods", "static", "--densities", "0.2", *TINY]


def compare(folder, *arguments):
    return main(["compare", "--output", str(folder), *map(str, arguments)])


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "sparsekern", "compare", "--output", str(folder), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def but_for_time(folder):
    return [{name: text for name, text in row.items() if "seconds" not in name} for row in rows(folder)]


def result(method="static", density=0.05, seed=0, accuracy=0.9, **others):
    counts = dict(steps=10, seconds=2.0, seconds_per_step=0.2, nnz=100, dense_weights=2000, threads=1, torch="2")
    counts |= dict(memory_bytes=1536, dense_memory_bytes=4096, activation_bytes=9, train_accuracy=1.0, test_loss=0.1)
    counts |= dict(best_dev_test_accuracy=None)
    named = dict(run=f"{method}-{density}-{seed}", method=method, density=density, seed=seed, axes={})
    return Result(**(named | counts | dict(test_accuracy=accuracy, best_test_accuracy=accuracy) | others))


# The grid.


def test_all_combinations_seed_by_seed_and_dense_once():
    grid = Grid.make(methods=["dense", "static", "rigl"], densities=[0.05, 0.02], seeds=[0, 1], axes=["lr=0.1,1e-2"])
    names = [cell.name for cell in grid.cells()]
    assert len(names) == len(set(names)) == 2 * 2 * (1 + 2 * 2)
    assert names[:6] == [
        "dense-lr=0.1-seed=0",
        "static-0.05-lr=0.1-seed=0",
        "rigl-0.05-lr=0.1-seed=0",
        "static-0.02-lr=0.1-seed=0",
        "rigl-0.02-lr=0.1-seed=0",
        "dense-lr=1e-2-seed=0",
    ]
    assert all(name.endswith("seed=0") for name in names[:10])


def test_dense_runs_take_no_mask():
    grid = Grid.make(methods=["dense", "static"], seeds=[0], axes=["mask=a.st,b.st"])
    names = [cell.name for cell in grid.cells()]
    assert names == ["dense-seed=0", "static-mask=a.st-seed=0", "static-mask=b.st-seed=0"]


def test_a_cell_is_what_train_takes():
    grid = Grid.make(
        methods=["set"],
        densities=[0.1],
        seeds=[7],
        axes=["label_smoothing=0.1", "milestones=0.1 0.2,0.5", "plots=true,false"],
        options=["--epochs=3", "--schedule", "multistep"],
    )
    cells = grid.cells()
    assert len(cells) == 4
    configs = [grid.config(cell) for cell in cells]
    assert [config.optimizer.milestones for config in configs] == [(0.1, 0.2), (0.1, 0.2), (0.5,), (0.5,)] or [
        config.optimizer.milestones for config in configs
    ] == [(0.1, 0.2), (0.5,), (0.1, 0.2), (0.5,)]
    assert sorted(config.run.plots for config in configs) == [False, False, True, True]
    for config in configs:
        assert (config.growth.name, config.sparsity.density, config.run.seed) == ("set", 0.1, 7)
        assert (config.run.epochs, config.optimizer.label_smoothing) == (3, 0.1)
    dense = Grid.make(methods=["dense"], seeds=[0])
    assert dense.config(dense.cells()[0]).sparsity.dense


def test_names_are_fit_for_files():
    cells = Grid.make(seeds=[], axes=["exclude=a/b c,a/b-c"]).cells()
    assert [cell.name for cell in cells] == ["exclude=a%2Fb%20c", "exclude=a%2Fb-c"]
    assert cells[0].words == ["--exclude", "a/b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densities", "0.1", "1"], "densities must be above 0 and below 1, got 1.0"),
        (["--seeds", "0", "0"], "axis seed has the value 0 twice"),
        (["--axis", "lr=0.1,0.1"], "axis lr has the value 0.1 twice"),
        (["--axis", "lr=0.1", "--axis", "lr=0.2"], "axis lr is given twice"),
        (["--axis", "lr"], "axis must be option=value,value such as lr=0.1,0.01, got 'lr'"),
        (["--axis", "lr=0.1,"], "got 'lr=0.1,'"),
        (["--axis", "growth=set"], "axis growth is given by --methods"),
        (["--axis", "twin=true"], "takes no --twin"),
        (["--axis", "lr=0.1", "--lr", "0.2"], "option --lr is an axis as well, by --axis lr"),
        (["--methods", "set", "--growth=rigl"], "option --growth=rigl is an axis as well, by --methods"),
        (["--methods", "set", "--no-dense"], "option --no-dense is an axis as well, by --methods"),
        (["--seed", "3"], "option --seed is an axis as well, by --seeds"),
        (["--resume", "x"], "takes no --resume: the same command goes on"),
        (["--stop_after", "3"], "takes no --stop-after"),
        (["--seeds", "--lr", "0.1"], "nothing to compare by"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--axis", "lr=0.1,-1"], "run lr=-1-seed=0 cannot be made"),
        (["--axis", "colour=red"], "run colour=red-seed=0 cannot be made"),
        (["--axis", "exclude=" + "x" * 300], "more than 200 bytes"),
        (["--methods", "gse"], "gse-uniform"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(arguments, message, tmp_path, capsys):
    try:
        code = compare(tmp_path / "out", *arguments)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_the_runs(tmp_path, capsys):
    assert compare(tmp_path / "out", *STATIC, "--seeds", 4, "--dry-run") == 0
    line = "static-0.2-seed=4: sparsekern train --no-plots --model mlp --width 16 --batch-size 256 --threads 1 "
    assert capsys.readouterr().out == line + "--growth static --density 0.2 --seed 4\n"
    assert not (tmp_path / "out").exists()


# The folder.


def test_a_folder_keeps_its_axes_and_options_and_takes_more_values(tmp_path):
    folder = CompareFolder(tmp_path / "out")
    folder.create()
    first = Grid.make(methods=["set"], seeds=[0, 1], options=["--epochs", "3"])
    assert [cell.name for cell in folder.add(first)] == ["set-seed=0", "set-seed=1"]
    more = Grid.make(methods=["rigl"], seeds=[1], options=["--epochs=3", "--lr", "0.10", "--checkpoint-every", "2"])
    with pytest.raises(ValueError, match=r"have optimizer.lr None, not 0.1; other options need an output"):
        folder.add(more)
    more = replace(more, options=("--epochs=3", "--checkpoint-every", "2", "--optimizer", "sgd"))
    assert [cell.name for cell in folder.add(more)] == ["set-seed=0", "set-seed=1", "rigl-seed=1"]
    assert [cell.name for cell in folder.add(first)] == ["set-seed=0", "set-seed=1", "rigl-seed=1"]
    with pytest.raises(ValueError, match="compares by method, seed, not by method, lr, seed"):
        folder.add(Grid.make(methods=["set"], axes=["lr=1"], options=["--epochs", "3"]))
    folder.grid.write_text("{}")
    with pytest.raises(ValueError, match=r"grid.json cannot be read"):
        folder.add(first)


def test_a_run_begun_under_other_options_is_named(tmp_path):
    folder = CompareFolder(tmp_path)
    grid = Grid.make(seeds=[0], options=["--lr", "0.3"])
    cell = grid.cells()[0]
    folder.run(cell).path.mkdir(parents=True)
    folder.run(cell).config.write_text(json.dumps(replace(grid, options=()).config(cell).to_dict()))
    with pytest.raises(ValueError, match=r"runs/seed=0 was begun with optimizer.lr None, not 0.3"):
        folder.add(grid)


def test_a_folder_with_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert compare(tmp_path, *STATIC) == 1
    assert "is no comparison's folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_lock_refuses_a_second_holder_and_outlives_the_first_in_those_that_inherit_it(tmp_path):
    with FolderLock(tmp_path) as lock:
        with pytest.raises(ValueError, match=rf"another comparison \(process {os.getpid()}\) is at work in {tmp_path}"):
            FolderLock(tmp_path).__enter__()
        child = subprocess.Popen(["sleep", "0.7"], pass_fds=[lock.descriptor])
        # As if the holder had been killed.
        os.pwrite(lock.descriptor, b"999999999", 0)
    with FolderLock(tmp_path):
        assert child.poll() is not None
    child.wait()


# Cores and memory.


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 8 cores with 10 GiB free, as /proc and /sys show it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    write(tmp_path, "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:   {10 << 20} kB\n")
    return tmp_path


def test_machine_without_control_groups(system):
    assert machine.cores_at_hand(system) == 8
    assert machine.memory_at_hand(system) == 10 << 30
    (system / "proc/meminfo").unlink()
    assert machine.memory_at_hand(system) is None


def test_limits_of_control_groups_of_version_2_at_any_level(system):
    write(system, "proc/self/cgroup", "0::/outer/inner\n")
    write(system, "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    write(system, "sys/fs/cgroup/outer/cpu.max", "350000 100000\n")
    write(system, "sys/fs/cgroup/outer/inner/memory.max", f"{4 << 30}\n")
    write(system, "sys/fs/cgroup/outer/inner/memory.current", f"{3 << 30}\n")
    write(system, "sys/fs/cgroup/outer/inner/memory.stat", f"anon 5\ninactive_file {1 << 30}\n")
    write(system, "sys/fs/cgroup/outer/memory.max", "max\n")
    write(system, "sys/fs/cgroup/outer/memory.current", "5\n")
    assert machine.cores_at_hand(system) == 3
    assert machine.memory_at_hand(system) == 2 << 30


def test_limits_of_control_groups_of_version_1(system):
    write(system, "proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/x\n")
    write(system, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n")
    write(system, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    write(system, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(system, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{1 << 30}\n")
    write(system, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", f"{1 << 29}\n")
    assert machine.cores_at_hand(system) == 1
    assert machine.memory_at_hand(system) == 1 << 29


def test_memory_of_a_process_with_its_children():
    code = "import subprocess, sys; x = b'1' * (64 << 20); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    inner = "y = b'1' * (32 << 20); del y; input()"
    process = subprocess.Popen([sys.executable, "-c", code, inner], stdin=subprocess.PIPE)

    def has_freed():
        now, peak = machine.resident_memory(process.pid)
        return now > 64 << 20 and peak - now > 30 << 20

    wait_until(has_freed)
    process.communicate(b"\n")
    assert machine.resident_memory(process.pid) == (0, 0)


class FakeRun:
    def __init__(self, now, most, settled=True):
        self.now, self.most, self.settled = now, most, settled

    def memory(self):
        return self.now, self.most

    def is_settled(self):
        return self.settled


@pytest.fixture
def at_hand(monkeypatch):
    monkeypatch.setattr(capacity, "cores_at_hand", lambda: 8)
    memory = [1000]
    monkeypatch.setattr(capacity, "memory_at_hand", lambda: memory[0])
    return memory


def test_runs_wait_until_the_first_has_shown_its_memory(at_hand):
    chosen = Capacity(None, 20, None, "cpu")
    first = FakeRun(100, 200, settled=False)
    assert chosen.admits([])
    assert not chosen.admits([first])
    first.settled = True
    # 250 each: 150 more for the first, and three of the 850 that are left.
    assert chosen.admits([first])
    assert (chosen.jobs, chosen.threads) == (4, 2)
    assert not chosen.admits([first] * 4)
    at_hand[0] = 399
    assert not chosen.admits([first])
    assert chosen.admits([])


def test_a_first_run_that_ended_has_shown_its_memory(at_hand):
    chosen = Capacity(None, 20, None, "cpu")
    assert not chosen.admits([FakeRun(100, 160, settled=False)])
    assert chosen.admits([])
    assert (chosen.is_settled, chosen.jobs, chosen.threads) == (True, 5, 1)


@pytest.mark.parametrize(
    ("jobs", "runs", "threads", "device", "expected"),
    [
        (None, 20, None, "cpu", (8, 1)),
        (None, 3, None, "cpu", (3, 2)),
        (None, 20, 4, "cpu", (2, 4)),
        (None, 20, 16, "cpu", (1, 16)),
        (None, 20, None, "cuda", (1, 8)),
        (3, 20, None, "cuda", (3, 2)),
        (30, 20, None, "cpu", (30, 1)),
    ],
)
def test_jobs_and_threads(at_hand, jobs, runs, threads, device, expected):
    chosen = Capacity(jobs, runs, threads, device)
    assert (chosen.jobs, chosen.threads) == expected
    # What was asked for is not measured.
    assert chosen.is_settled == (jobs is not None or expected[0] == 1)


# Tables.


def test_deviation_is_of_a_sample():
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    assert mean_and_deviation([5.0]) == (5.0, None)
    assert (show_mean([97.0, 98.0]), show_mean([97.126])) == ("97.50 ± 0.71", "97.13")


def test_a_table_more_where_images_were_held_out():
    held_out = [result(seed=seed, best_dev_test_accuracy=0.5 + 0.1 * seed) for seed in (0, 1)]
    heading = "## At the epoch that is best on the held-out images"
    page = render(held_out, 2, [])
    assert page.count("| static | 90.00 ± 0.00 |") == 1
    assert "| static | 55.00 ± 7.07 |" in page[page.index(heading) : page.index("## Time and storage")]
    assert heading not in render([*held_out, result(seed=2)], 3, [])


def test_accuracy_table():
    results = [
        *(result("dense", None, seed, accuracy) for seed, accuracy in ((0, 0.99), (1, 1.0))),
        *(result("static", 0.05, seed, accuracy) for seed, accuracy in ((0, 0.9), (1, 0.94))),
        *(result("static", 0.2, seed, accuracy) for seed, accuracy in ((0, 0.95), (1, 0.95))),
        *(result("set", 0.2, seed, accuracy) for seed, accuracy in ((0, 0.96), (1, 0.98))),
    ]
    assert accuracy_table(results).splitlines() == [
        "|  | 0.2 | 0.05 |",
        "| --- | ---: | ---: |",
        "| dense | 99.50 ± 0.71 | 99.50 ± 0.71 |",
        "| static | 95.00 ± 0.00 | 92.00 ± 2.83 |",
        "| set | 97.00 ± 1.41 | - |",
    ]
    assert "over 2 seeds. torch" in render(results, 8, [])
    page = render([*results, result("set", 0.05, 0, 0.5)], 12, ["--lr", "0.1"])
    assert "| set | 97.00 ± 1.41 (2) | 50.00 (1) |" in page
    assert "9 of 12 runs are finished" in page
    assert "sparsekern train --lr 0.1 ..." in page
    assert "of one seed." in render(results[:1], 1, [])
    assert "None of 3 runs is finished." in render([], 3, [])


def test_other_axes_are_rows_and_columns_of_their_own(tmp_path):
    results = [result(axes={"lr": "0.1"}), result(axes={"lr": "0.2"}), result("dense", None, axes={"lr": "0.1"})]
    assert accuracy_table(results).splitlines()[2:] == [
        "| static, lr=0.1 | 90.00 |",
        "| static, lr=0.2 | 90.00 |",
        "| dense, lr=0.1 | 90.00 |",
    ]
    assert "| static, lr=0.2 | 0.05 | 100 | 200.00 | 2.00 | 1.5 KiB | 4.0 KiB |" in size_table(results)
    write_csv(tmp_path / "results.csv", results)
    assert [(row["lr"], row["density"], row["seed"]) for row in rows(tmp_path)] == [
        ("0.1", "0.05", "0"),
        ("0.2", "0.05", "0"),
        ("0.1", "", "0"),
    ]


# Whole comparisons.

TWO_SEEDS = [*STATIC, "--seeds", 0, 1, "--epochs", 80]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two seeds, side by side."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert compare(folder, *TWO_SEEDS, "--jobs", 2) == 0
    return folder


def test_results_are_those_of_the_runs(whole):
    assert {file.name for file in whole.iterdir()} == {
        *("grid.json", "runs", "logs", "results.csv", "results.md", "accuracy.png", ".lock"),
    }
    found = rows(whole)
    assert [row["run"] for row in found] == ["static-0.2-seed=0", "static-0.2-seed=1"]
    accuracies = []
    for row in found:
        run = whole / "runs" / row["run"]
        summary = json.loads((run / "summary.json").read_text())
        for name in ("test_accuracy", "test_loss", "nnz", "steps", "seconds_per_step", "threads"):
            assert float(row[name]) == summary[name]
        assert int(row["memory_bytes"]) == summary["memory"]["total"]
        with (run / "metrics.csv").open() as file:
            epochs = list(csv.DictReader(file))
        assert len(epochs) == 80
        assert float(row["best_test_accuracy"]) == max(float(epoch["test_accuracy"]) for epoch in epochs)
        assert float(row["seconds"]) == sum(float(epoch["seconds"]) for epoch in epochs)
        accuracies.append(100 * summary["test_accuracy"])
    assert f"| static | {show_mean(accuracies)} |" in (whole / "results.md").read_text()
    assert (whole / "accuracy.png").stat().st_size > 5000


def test_finished_runs_are_left_alone(whole, capsys):
    before = {file: file.stat().st_mtime_ns for file in (whole / "runs").rglob("*")}
    assert compare(whole, *TWO_SEEDS) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (whole / "runs").rglob("*")} == before
    assert compare(whole, *STATIC, "--seeds", 0, 1, "--epochs", 81) == 1
    assert "was begun with run.epochs 80, not 81" in capsys.readouterr().err


def test_killed_and_gone_on_with_is_the_same_to_the_bit(whole, tmp_path, capsys):
    """One at a time here, two there."""
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    first, second = (folder / "runs" / f"static-0.2-seed={seed}" for seed in (0, 1))
    shutil.rmtree(second)
    (folder / "logs" / f"{second.name}.log").unlink()
    arguments = [*TWO_SEEDS, "--jobs", 1]
    process = start(folder, *arguments)
    wait_until(lambda: (second / "metrics.csv").exists())
    assert compare(folder, *arguments) == 1
    assert f"another comparison (process {process.pid}) is at work in {folder}" in capsys.readouterr().err
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 1
    process.kill()
    process.wait()
    with FolderLock(folder):
        assert "all is saved" in (folder / "logs" / f"{second.name}.log").read_text()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (second / "summary.json").exists()
    assert 0 < load_checkpoint(second / "checkpoint.safetensors")["progress"]["step"] < 80 * 6
    assert [row["run"] for row in rows(folder)] == [first.name]
    assert "1 of 2 runs are finished" in (folder / "results.md").read_text()
    finished = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    assert compare(folder, *arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == finished
    commands = [line for line in (folder / "logs" / f"{second.name}.log").read_text().splitlines() if line[0] == "$"]
    assert [f"--resume {second}" in line for line in commands] == [False, True]
    assert but_for_time(folder) == but_for_time(whole)


def test_interrupt_saves_and_says_how_to_go_on(tmp_path, capsys):
    run = tmp_path / "runs" / "static-0.2-seed=0"

    def interrupt():
        wait_until(lambda: (run / "metrics.csv").exists())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert compare(tmp_path, *STATIC, "--seeds", 0, 1, "--epochs", 100000, "--jobs", 1) == 128 + signal.SIGINT
    thread.join()
    output = capsys.readouterr().out
    assert f"To go on:\n  sparsekern compare --output {tmp_path}" in output
    assert "failed" not in output
    assert not (tmp_path / "runs" / "static-0.2-seed=1").exists()
    assert "all is saved" in (tmp_path / "logs" / f"{run.name}.log").read_text()
    assert load_checkpoint(run / "checkpoint.safetensors")["progress"]["step"] > 0


def test_a_failed_run_is_shown_and_the_others_go_on(tmp_path, capsys):
    arguments = [*STATIC, "--seeds", 0, "--epochs", 1, "--axis", "lr=1e30,0.1"]
    assert compare(tmp_path, *arguments) == 1
    output = capsys.readouterr().out
    assert "static-0.2-lr=1e30-seed=0 failed with exit code 1; the end of" in output
    assert "the run diverged" in output
    assert "1 of 2 runs failed: static-0.2-lr=1e30-seed=0" in output
    assert [(row["run"], row["lr"]) for row in rows(tmp_path)] == [("static-0.2-lr=0.1-seed=0", "0.1")]
    assert "at a time, 1 thread each (" in output
