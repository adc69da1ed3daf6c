"""Runs that are killed, stopped, damaged or out of disk: what is kept, and how they go on."""

import dataclasses
import io
import json
import multiprocessing
import os
import resource
import signal
import time
import warnings

import pytest
import torch
from rich.console import Console

from benchmarks import process
from benchmarks.__main__ import main
from benchmarks.faulty import damage, disk, jobs, saving, steps
from benchmarks.faulty.states import at_step
from sparsekern.atomic import remove_unfinished, replace_file
from sparsekern.commands.train import train
from sparsekern.data.files import FileLoader, PictureFiles, leave_signals_to_main
from sparsekern.sealed import as_os_error, save_sealed
from sparsekern.training import checkpoint, run
from sparsekern.training.checkpoint import CheckpointError, DamagedCheckpoint, load_checkpoint, save_checkpoint
from sparsekern.training.checkpoints import Checkpoints
from sparsekern.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from sparsekern.training.folder import RunFolder
from sparsekern.training.load import load_model
from sparsekern.training.log import RunLog
from sparsekern.training.metrics import CsvLog, read_csv
from sparsekern.training.progress import StopRequest
from sparsekern.training.run import SAVED_ON_SIGTERM, Stopped, dense_twin, resume, start
from sparsekern.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 5  # an epoch
CONSOLE = Console(file=io.StringIO())


def make_config(output, **changes):
    config = TrainConfig(
        model=ModelConfig("resnet", width=4, depth=8),
        data=DataConfig(batch_size=256),
        growth=GrowthConfig("gse-graest", interval=2, end=1.0),
        optimizer=OptimizerConfig("adamw", warmup_epochs=1, ema=0.5),
        run=RunConfig(epochs=3, output=output, plots=False),
    )
    for section, values in changes.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    return config


def train_on(trainer, folder):
    with StopRequest() as stop:
        run.fit(trainer, folder, CONSOLE, stop)


def tree(step):
    return {"value": torch.full((5,), float(step)), "progress": {"step": step}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def rows(folder):
    return [
        [{key: value for key, value in row.items() if key != "seconds"} for row in read_csv(log.path)]
        for log in (folder.metrics, folder.topology)
    ]


def assert_same_end(folder, whole):
    """Equal to the bit and to the line, but for times and for the configuration, where the folder's name is."""
    mine, theirs = (load_checkpoint(each.checkpoint) for each in (folder, whole))
    for part in mine.keys() - {"config", "progress"}:
        assert jobs.equal(mine[part], theirs[part]), part
    assert mine["progress"]["step"] == theirs["progress"]["step"]
    assert rows(folder) == rows(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a break."""
    trainer, folder = start(make_config(tmp_path_factory.mktemp("whole") / "run"))
    train_on(trainer, folder)
    return folder


# -- files


def test_a_new_file_can_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "x", tree(1))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_write_leaves_is_removed(tmp_path):
    def killed(aside):
        aside.write_text("half")
        (aside.parent / ".tmp1234").write_text("a writer's own file")
        os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            replace_file(tmp_path / "x", killed)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    (tmp_path / ".y.1.tmp").write_text("an older version's")
    assert len(names(tmp_path)) == 2
    remove_unfinished(tmp_path)
    assert names(tmp_path) == []


def test_a_file_beyond_the_limit_is_an_error_that_the_system_names(tmp_path):
    """As a full disk, in the writer's own terms: the limit on a file's size."""
    path = tmp_path / "x"
    save_checkpoint(path, tree(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_checkpoint(path, {"value": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(path)
    assert load_checkpoint(path)["progress"]["step"] == 1
    assert names(tmp_path) == ["x"]
    assert "x cannot be written: odd" in str(as_os_error(Exception("odd"), path))


def test_the_version_is_under_the_checksum(tmp_path):
    path = tmp_path / "x"
    save_checkpoint(path, tree(1))
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"0"'))
    with pytest.raises(DamagedCheckpoint, match="do not match their checksum"):
        load_checkpoint(path)


# -- the last checkpoints


@pytest.mark.parametrize("has_links", [True, False])
def test_the_last_checkpoints_are_kept(tmp_path, monkeypatch, has_links):
    def no_links(*_):
        raise PermissionError("no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    checkpoints = Checkpoints(tmp_path)
    for step in (0, 3, 3, 6, 9, 12):
        checkpoints.save(tree(step), step, keep=3)
    assert names(tmp_path) == ["checkpoint-6.safetensors", "checkpoint-9.safetensors", "checkpoint.safetensors"]
    assert load_checkpoint(checkpoints.newest)["progress"]["step"] == 12
    for step, path in checkpoints.earlier().items():
        assert load_checkpoint(path)["value"].tolist() == [step] * 5
    Checkpoints(tmp_path).save(tree(7), 7, keep=3)  # a run that someone took back
    assert names(tmp_path) == ["checkpoint-6.safetensors", "checkpoint.safetensors"]
    checkpoints.save(tree(15), 15, keep=1)
    assert names(tmp_path) == ["checkpoint.safetensors"]


def test_an_earlier_checkpoint_stands_in_for_a_damaged_one_with_a_warning(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(tree(step), step, keep=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(tmp_path).find()[1]["progress"]["step"] == 3
    checkpoints.newest.write_bytes(checkpoints.newest.read_bytes()[:-1])
    path = tmp_path / "checkpoint-2.safetensors"
    path.write_bytes(b"")
    again = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"(?s)checkpoint.safetensors is .*damaged.*-2.safeten.*goes on from .*-1"):
        found, state = again.find()
    assert found.name == "checkpoint-1.safetensors"
    assert state["value"].tolist() == [1] * 5
    again.save(tree(2), 2, keep=3)  # the damaged ones are gone, and none of them is kept as an earlier one
    assert names(tmp_path) == ["checkpoint-1.safetensors", "checkpoint.safetensors"]
    again.newest.unlink()
    with pytest.warns(UserWarning, match="no checkpoint at .*goes on from .*checkpoint-1"):
        again.find()


def test_where_nothing_can_be_read_the_error_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.exist()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoints.find()
    for step in (1, 2):
        checkpoints.save(tree(step), step, keep=2)
    for path in (checkpoints.newest, *checkpoints.earlier().values()):
        path.write_bytes(b"nothing")
    with pytest.raises(DamagedCheckpoint, match="No earlier one can be read"):
        checkpoints.find()


def test_no_run_goes_back_from_a_newer_versions_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(tree(step), step, keep=2)
    save_sealed(checkpoints.newest, checkpoint.FORMAT, checkpoint.VERSION + 1, "{}", {})
    with pytest.raises(CheckpointError, match="newer than format"):
        checkpoints.find()


def test_a_network_is_never_loaded_from_an_earlier_checkpoint(tmp_path):
    trainer, folder = start(make_config(tmp_path / "run", run={"save_every": 2, "stop_after": 5}))
    with pytest.raises(Stopped):
        train_on(trainer, folder)
    assert list(folder.checkpoints.earlier()) == [4]
    load_model(folder.path)
    folder.checkpoint.write_bytes(b"damaged")
    with pytest.raises(DamagedCheckpoint):
        load_model(folder.path)


# -- runs


class Killed(BaseException):
    pass


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_killed_between_epochs_goes_on_to_the_bit(tmp_path, whole, monkeypatch, damaged):
    """Killed in step 9 of 15: the checkpoints are of steps 6 and 8, or, where that one is damaged, 6 alone counts."""
    config = make_config(tmp_path / "run", run={"save_every": 2})
    trainer, folder = start(config)
    make_step = Trainer.train_step

    def step_or_die(self, *arguments):
        result = make_step(self, *arguments)
        if self.step == 9:
            folder.topology.append(result or [{"step": 9, "layer": "written, not saved"}])
            raise Killed
        return result

    monkeypatch.setattr(Trainer, "train_step", step_or_die)
    with pytest.raises(Killed):
        train_on(trainer, folder)
    monkeypatch.undo()
    assert list(folder.checkpoints.earlier()) == [6]
    torch.rand(3)
    if damaged:
        folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:1000])
        with pytest.warns(UserWarning, match="goes on from .*checkpoint-6"):
            trainer = resume(config, RunFolder(config.run.output))
    else:
        trainer = resume(config, folder)
    assert trainer.step == (6 if damaged else 8)
    train_on(trainer, folder)
    assert_same_end(folder, whole)


def test_an_epoch_whose_test_came_after_the_checkpoint_is_on_record_once(tmp_path, whole, monkeypatch):
    """Saved at the epoch's last step, killed between the rows of its test and the save that counts them."""
    config = make_config(tmp_path / "run", run={"save_every": STEPS})
    trainer, folder = start(config)
    write = RunLog.epoch

    def write_and_die(log, metrics):
        write(log, metrics)
        if trainer.epoch == 2:
            raise Killed

    monkeypatch.setattr(RunLog, "epoch", write_and_die)
    with pytest.raises(Killed):
        train_on(trainer, folder)
    monkeypatch.undo()
    assert len(read_csv(folder.metrics.path)) == 2
    trainer = resume(config, folder)
    assert (trainer.step, trainer.epoch) == (2 * STEPS, 1)
    train_on(trainer, folder)
    assert_same_end(folder, whole)
    assert len(read_csv(folder.layers.path)) == len(read_csv(whole.layers.path))
    assert [row["step"] for row in read_csv(folder.resources.path) if row["what"] == "epoch"] == ["5", "10", "15"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_signal_in_the_middle_of_a_test_saves_and_stops(tmp_path, monkeypatch, number, split):
    changes = {"data": {"held_out": 150}, "optimizer": {"ema": 0.0}}
    uninterrupted, expected = start(make_config(tmp_path / "whole", **changes))
    train_on(uninterrupted, expected)
    config = make_config(tmp_path / "run", **changes)
    trainer, folder = start(config)
    batches = type(trainer.data).batches

    def batches_and_signal(self, asked, *arguments):
        if asked == split and trainer.step == 2 * STEPS:
            os.kill(os.getpid(), number)
        return batches(self, asked, *arguments)

    monkeypatch.setattr(type(trainer.data), "batches", batches_and_signal)
    with pytest.raises(Stopped) as stopped:
        train_on(trainer, folder)
    monkeypatch.undo()
    assert stopped.value.code == (SAVED_ON_SIGTERM if number == signal.SIGTERM else 130)
    assert trainer.model.training
    state = load_checkpoint(folder.checkpoint)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 2 * STEPS)
    assert [row["epoch"] for row in read_csv(folder.metrics.path)] == ["1"]
    train_on(resume(config, folder), folder)
    assert_same_end(folder, expected)


def test_sigterm_in_a_step_finishes_it_and_has_an_exit_code_of_its_own(tmp_path, monkeypatch, capsys):
    make_step = Trainer.train_step

    def signalled_step(self, *arguments):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process at once
        return make_step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", signalled_step)
    words = ["--model", "mlp", "--batch-size", "256", "--no-plots", "--output", str(tmp_path / "run")]
    assert train(words) == SAVED_ON_SIGTERM == 75
    assert "stopped at step 4 of" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["progress"]["step"] == 4


def test_a_second_signal_ends_at_once():
    def wait_in_vain(ready):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with StopRequest() as stop:
            os.write(ready, b".")
            while stop.signal is None:
                time.sleep(0.01)
            os.write(ready, b".")
            time.sleep(60)

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            wait_in_vain(writing)
        finally:
            os._exit(1)
    for _ in range(2):
        os.read(reading, 1)
        os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


class Numbers(PictureFiles):
    """Pictures that are read from nowhere."""

    def __init__(self):
        super().__init__([("", 0)] * 64, ())

    def __getitem__(self, key):
        return torch.zeros(3, 4, 4, dtype=torch.uint8), key[0]


def test_workers_leave_the_jobs_signals_to_the_main_process():
    """A scheduler's SIGTERM and a terminal's Ctrl-C reach the workers as well; a second SIGTERM ends one."""
    loader = FileLoader(Numbers(), 4, seed=0, workers=2, prepare=lambda x: x, device=torch.device("cpu"))
    seen, others = [], multiprocessing.active_children()
    for place, (_, labels) in enumerate(loader):
        seen += labels.tolist()
        if place == 3:
            workers = [child for child in multiprocessing.active_children() if child not in others]
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGTERM)
                os.kill(worker.pid, signal.SIGINT)
    assert sorted(seen) == list(range(64))
    child = os.fork()
    if child == 0:
        leave_signals_to_main(0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


AUTO = ["--model", "mlp", "--width", "8", "--batch-size", "256", "--epochs", "2", "--no-plots", "--resume", "auto"]
AUTO += ["--timeout", "100"]  # means nothing to a single process


def test_one_command_begins_goes_on_and_is_done(tmp_path, capsys):
    words = [*AUTO, "--output", str(tmp_path / "run")]
    assert train([*words, "--stop-after", "4"]) == 0
    assert "stopped at step 4 of 10" in capsys.readouterr().out
    assert train([*words, "--save-every", "3"]) == 0
    assert list(RunFolder(tmp_path / "run").checkpoints.earlier()) == [9]
    assert train(words) == 0  # nothing is left to do
    assert len(read_csv(tmp_path / "run" / "metrics.csv")) == 2
    capsys.readouterr()
    assert train([*words, "--lr", "0.5"]) == 1
    assert "optimizer.lr is None, not 0.5" in capsys.readouterr().err
    assert train(AUTO) == 1
    assert "--resume auto needs --output" in capsys.readouterr().err


def test_runs_killed_before_their_first_checkpoint_begin_again(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / ".checkpoint.safetensors.1.tmp").mkdir()
    words = [*AUTO, "--output", str(tmp_path / "run"), "--stop-after", "1"]
    assert train(words) == 0
    assert names(tmp_path / "run") == ["checkpoint-0.safetensors", "checkpoint.safetensors", "config.json"]
    config = make_config(tmp_path / "whole", run={"twin": True})
    _, folder = start(config)
    (folder.path / "dense").mkdir()
    (folder.path / "dense" / "config.json").write_text("{}")
    assert dense_twin(config, folder)[0].step == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert train([*AUTO, "--output", str(tmp_path / "other")]) == 1
    assert "exists" in capsys.readouterr().err
    assert names(tmp_path / "other") == ["notes.txt"]


def test_rows_that_a_power_loss_tore_are_cut(tmp_path):
    log = CsvLog(tmp_path / "x.csv", ("step", "layer"))
    log.append([{"step": 1, "layer": "a"}])
    with log.path.open("ab") as file:
        file.write(b"\0\0\0,\0\0\xff\n,\n2")
    log.cut(5)
    assert read_csv(log.path) == [{"step": "1", "layer": "a"}]


# -- the counts of `python -m benchmarks faults`, small


def test_faults_kill():
    found = saving.kill(6, seed=1, width=16)
    assert found["newest_whole_and_right"] == 6


def test_faults_kill_can_tell(tmp_path):
    """What must not be found is found: a state that was not saved, an older one, damage."""
    states = [tree(1), tree(2)]
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(at_step(states[(step + 1) % 2], step), step, saving.KEEP)
    assert saving.outcome(tmp_path, states, 3) == saving.outcome(tmp_path, states, 2) == "right"
    assert saving.outcome(tmp_path, states, 4) == "not the last one"
    assert saving.outcome(tmp_path, states[::-1], 3) == "wrong"
    checkpoints.newest.write_bytes(b"")
    assert saving.outcome(tmp_path, states, 3) == "damaged"


def test_faults_damage(monkeypatch):
    found = damage.damage(20, seed=1, width=4)
    assert found["errors"] == found["of"] == 120
    assert set(found["flips"]) | set(found["truncations"]) == {"error, run goes on from the earlier one"}
    assert damage.newer(seed=1)["refused"]


def test_faults_disk():
    found = disk.full(seed=1)
    if "failed" in found:
        pytest.skip(f"no tmpfs of its own: {found['failed']}")
    assert found["exit_code"] == 1
    assert "No space left on device" in found["message"]
    assert found["old_file_stays"]
    assert not any("tmp" in name for name in found["left"])
    assert found["exit_code_with_space"] == 0
    assert found["same_final_weights"]


@pytest.mark.parametrize("network", steps.NETWORKS)
def test_faults_steps(network, monkeypatch):
    """Tensors are counted, not bytes: so few steps say nothing of memory, but a leak has tensors."""
    monkeypatch.setattr(steps, "FIRST", 50)
    found = steps.measure(network, 200, seed=1)
    assert found["updates"] == 4
    assert len(found["bytes_every_1000_steps"]) == 4
    first, *later = found["tensors_every_1000_steps"]
    assert max(later) <= first


def test_faults_jobs(tmp_path, monkeypatch):
    """torchrun starts a killed rank again, which goes on from its own checkpoint."""
    monkeypatch.setattr(jobs, "TRAIN", (*jobs.TRAIN, "--epochs", "3"))
    config = [*jobs.TRAIN, "--seed", "1", "--output", str(tmp_path / "whole")]
    assert train(config) == 0
    found = jobs.restart(tmp_path / "run", RunFolder(tmp_path / "whole"), 1, 1, 0.0)
    assert {key: found[key] for key in ("hit", "code", "ended", "same")} == {
        "hit": True,
        "code": 0,
        "ended": True,
        "same": True,
    }
    assert not jobs.compare(tmp_path / "gone", RunFolder(tmp_path / "whole"))["same"]


def test_faults_keeps_what_was_measured_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(process, "prepare", lambda threads: None)
    monkeypatch.setattr(damage, "damage", lambda flips, seed: whole_damage | {"of": 100 + flips})
    whole_damage = {"bytes": 1, "truncations": {"loaded": 1}, "flips": {"error": 5}, "errors": 104}
    assert main(["faults", "--sections", "newer", "--output", str(tmp_path)]) == 0
    assert main(["faults", "--sections", "damage", "--flips", "5", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "faults.json").read_text())
    assert result["newer"]["refused"]
    assert result["damage"]["made"]["command"] == "python -m benchmarks faults --sections damage --flips 5"
    page = (tmp_path / "faults.md").read_text()
    assert "Refused: `RUN/checkpoint.safetensors has format 2, newer" in page
    assert "104 of 105 are an error" in page
    capsys.readouterr()
    assert main(["faults", "--kills", "0"]) == 1
    assert "--kills" in capsys.readouterr().err
