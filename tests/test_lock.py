"""One job at a time in a run's folder, and jobs that were left behind."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import time
import warnings

import pytest

from sparsekern.commands import train as command
from sparsekern.commands.train import train
from sparsekern.report.command import report
from sparsekern.training import lock, progress
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.config import RunConfig, TrainConfig
from sparsekern.training.folder import RunFolder, make_unused
from sparsekern.training.load import load_model
from sparsekern.training.lock import FolderInUse, hold, let_go
from sparsekern.training.progress import StopAsked, StopRequest
from sparsekern.training.run import resume

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["--model", "mlp", "--width", "8", "--batch-size", "256", "--epochs", "2", "--no-plots"]
TINY += ["--tensorboard", "False"]


@pytest.fixture(autouse=True)
def nothing_stays_held():
    yield
    let_go()


@contextlib.contextmanager
def process(work):
    """A forked process, its number and the end of a pipe that `work` writes to; killed in the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(writing)
            time.sleep(60)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        yield child, reading
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        os.close(reading)


@contextlib.contextmanager
def held_elsewhere(folder, seconds=60.0):
    """By another process, whose number it is, for so long."""

    def work(writing):
        hold(folder)
        os.write(writing, b".")
        time.sleep(seconds)
        os._exit(0)

    with process(work) as (child, reading):
        assert os.read(reading, 1) == b"."
        yield child


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_one_process_at_a_time_however_it_ends(tmp_path):
    """A data loader's workers are forked from the process that holds the lock, and may outlive a SIGKILL of it."""

    def work(writing):
        hold(tmp_path)
        if os.fork():
            os.write(writing, b".")
            time.sleep(60)
        os.write(writing, f"{os.getpid()} ".encode())
        time.sleep(60)

    with process(work) as (child, reading):
        said = b""
        while not (b"." in said and b" " in said):
            said += os.read(reading, 20)
        with pytest.raises(FolderInUse, match=f"{tmp_path} is in use: process {child} on {socket.gethostname()} is at"):
            hold(tmp_path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        worker = int(said.replace(b".", b""))
        os.kill(worker, 0)
        assert (tmp_path / ".lock").exists()
        hold(tmp_path)
        hold(tmp_path)
        os.kill(worker, signal.SIGKILL)
    let_go(tmp_path)
    assert os.listdir(tmp_path) == []
    with held_elsewhere(tmp_path), pytest.raises(FolderInUse):
        hold(tmp_path)


def test_a_process_that_is_just_ending_is_waited_for(tmp_path, monkeypatch):
    sleep, waits = time.sleep, []

    def ends_at_the_second(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            os.kill(other, signal.SIGKILL)
        sleep(seconds)

    with held_elsewhere(tmp_path) as other:
        with pytest.raises(FolderInUse):
            hold(tmp_path, patience=0.05)
        monkeypatch.setattr(time, "sleep", ends_at_the_second)
        waits.clear()
        hold(tmp_path, patience=20)
    assert len(waits) >= 2


def test_a_lock_that_its_holder_removed_meanwhile_is_none(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def late(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    hold(tmp_path)
    assert len(calls) == 2
    monkeypatch.undo()
    (tmp_path / ".lock").unlink()  # as with all of a folder that is then made anew
    hold(tmp_path)
    assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, number):
    def flock(descriptor, how):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=f"file system of {tmp_path} has no locks"):
        hold(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hold(tmp_path)  # said once
    let_go()
    assert os.listdir(tmp_path) == []
    number = errno.EIO
    with pytest.raises(OSError, match="not here"):
        hold(tmp_path)


def test_a_second_job_is_refused_and_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PATIENCE", 0.2)
    run = tmp_path / "run"
    words = [*TINY, "--output", str(run)]
    assert train([*words, "--stop-after", "3"]) == 0
    assert not (run / ".lock").exists()
    (run / ".checkpoint.safetensors.1.tmp").mkdir()  # what is being written there
    with held_elsewhere(run) as other:
        before = contents(run)
        for second in (words, [*words, "--resume", "auto"], ["--resume", str(run)]):
            capsys.readouterr()
            assert train(second) == 1
            assert f"{run} is in use: process {other} on" in capsys.readouterr().err
        assert contents(run) == before
        assert (run / ".checkpoint.safetensors.1.tmp").exists()
        assert report([str(run)]) == 0  # who reads needs no lock
        load_model(run)
        folder = RunFolder(run)
        with pytest.raises(FolderInUse):
            resume(folder.load_config(), folder)
    monkeypatch.undo()
    with held_elsewhere(run, seconds=0.6):  # the job before, which is just ending
        assert train(["--resume", str(run)]) == 0
    with held_elsewhere(run, seconds=0.6):
        assert train([*words, "--resume", "auto"]) == 0
    assert not (run / ".lock").exists()


def test_a_job_before_its_first_checkpoint_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PATIENCE", 0.1)
    with held_elsewhere(tmp_path):
        (tmp_path / "config.json").write_text("{}")
        assert train([*TINY, "--resume", "auto", "--output", str(tmp_path)]) == 1
        assert "is in use" in capsys.readouterr().err
        assert (tmp_path / "config.json").exists()
    (tmp_path / "config.json").unlink()
    assert os.listdir(tmp_path) == [".lock"]  # of the process that was killed
    assert train([*TINY, "--output", str(tmp_path), "--stop-after", "1"]) == 0


def test_a_folder_that_is_refused_is_let_go(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another --output"):
        RunFolder.create(TrainConfig(run=RunConfig(output=tmp_path)))
    with pytest.raises(FileExistsError, match="is a file"):
        RunFolder.create(TrainConfig(run=RunConfig(output=tmp_path / "notes.txt")))
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert not lock._held


def test_the_twin_is_locked_too(tmp_path, capsys):
    run = tmp_path / "run"
    assert train([*TINY, "--output", str(run), "--stop-after", "1"]) == 0
    (run / "dense").mkdir()
    with held_elsewhere(run / "dense") as other:
        assert train(["--resume", str(run), "--twin", "--stop-after", "None"]) == 1
        assert f"{run / 'dense'} is in use: process {other}" in capsys.readouterr().err


def test_jobs_that_start_together_take_folders_of_their_own(tmp_path):
    made = [make_unused(tmp_path / "runs" / "x") for _ in range(3)]
    assert [path.name for path in made] == ["x", "x-2", "x-3"]
    assert all(path.is_dir() for path in made)


def test_processes_of_a_torchrun_that_was_killed_are_asked_to_stop(monkeypatch, capfd):
    def agent(writing):
        """As torchrun's: the parent of a process that trains."""
        if os.fork():
            time.sleep(60)
        progress.PARENT = os.getppid()
        stop = StopRequest()
        assert not stop.asked()
        os.write(writing, b".")
        deadline = time.monotonic() + 20
        while not stop.asked() and time.monotonic() < deadline:
            time.sleep(0.01)
        with contextlib.suppress(StopAsked):
            stop.check()
            os.write(writing, b"nothing came")
            os._exit(1)
        os.write(writing, str(int(stop.signal)).encode())
        os._exit(0)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with process(agent) as (child, reading):
        assert os.read(reading, 1) == b"."
        os.kill(child, signal.SIGKILL)
        assert os.read(reading, 20) == b"15"
    assert capfd.readouterr().err == "sparsekern train: torchrun was killed; saving and stopping\n"


def test_a_run_whose_torchrun_was_killed_saves_and_stops(tmp_path, monkeypatch):
    words = [*TINY, "--resume", "auto", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(progress, "PARENT", -1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert train(words) == 75
    assert load_checkpoint(RunFolder(tmp_path / "run").checkpoint)["progress"]["step"] == 1
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # others may lose their parent: nohup, daemons
    assert train(words) == 0
