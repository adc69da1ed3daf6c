"""Jobs under torchrun whose ranks are killed or told to stop, and started again by the same command."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fresh import ROOT
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.folder import RunFolder
from sparsekern.training.metrics import read_csv
from sparsekern.training.run import SAVED_ON_SIGTERM

TIMEOUT = 60.0  # seconds in which a job whose rank was killed must have ended
LONGEST = 300.0
PATIENCE = 15  # seconds that processes wait for one that hangs
LOG = 20_000  # characters of a job's output that are looked at
GRACE = 30.0  # that torchrun gives those that it ends
# Saves and updates often, so that much of the time goes there.
TRAIN = (
    *("--model", "resnet", "--width", "8", "--depth", "8", "--epochs", "8", "--batch-size", "64"),
    *("--growth", "gse-graest", "--interval", "3", "--end", "1", "--threads", "1", "--save-every", "2", "--no-plots"),
)


def interrupt(times: int, ranks: int, seed: int) -> dict[str, Any]:
    """Interrupts a run at work in several ways, each time in a job of its own, and compares how they end.

    killed, `times` times: SIGKILL of one rank at a random moment; the job must end with an error within TIMEOUT, and
    the same command finish it. restarted, a quarter as often: the same under `--max-restarts=1`; the job must finish
    by itself. stopped, as often: SIGTERM of the process (or, of several, of all of them, and of torchrun, as a
    scheduler does); it must exit with SAVED_ON_SIGTERM, and the same command finish it. hung, of several ranks alone
    and a tenth as often: SIGSTOP of one; the job must end with an error once the others waited PATIENCE. orphaned, of
    several ranks alone and a quarter as often: SIGKILL of torchrun itself; its ranks must save and end by themselves
    within TIMEOUT, and the same command finish it. doubled, a quarter as often: the same command while the job is at
    work (SIGSTOP holds it meanwhile); it must be refused, and the job finish. The final weights must be those of a run
    without a break, bit for bit, and so the CSV files but for their times. Interruptions that come too late are made
    again.
    """
    draws = random.Random(seed)
    shares = {"killed": 1, "restarted": 4, "stopped": 4, "doubled": 4}
    if ranks > 1:
        shares |= {"hung": 10, "orphaned": 4}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, seconds = uninterrupted(folder / "whole", ranks, seed)
        trials: list[dict[str, Any]] = []
        for way, share in shares.items():
            wanted = -(-times // share)
            while hits(trials, way) < wanted:
                number = len(trials)
                if number > 4 * times * len(shares):
                    raise RuntimeError(f"most runs were over before they could be {way}")
                path = folder / f"{way}-{number}"
                trial = {"way": way, **WAYS[way](path, whole, ranks, seed, draws.uniform(0, seconds))}
                trials.append(trial)
                print(trial, file=sys.stderr, flush=True)
                if not (trial["ended"] and trial["same"]):
                    print(path.with_suffix(".log").read_text(), file=sys.stderr, flush=True)
    counts = {
        way: {
            "of": sum(trial["way"] == way for trial in trials),
            "interrupted_before_their_end": hits(trials, way),
            "while_saving": sum(trial["while_saving"] for trial in trials if trial["way"] == way),
            "as_it_should": sum(trial["ended"] and trial["same"] for trial in trials if trial["way"] == way),
        }
        for way in shares
    }
    return {"ranks": ranks, "seconds_of_training": seconds, **counts, "trials": trials}


def hits(trials: list[dict[str, Any]], way: str) -> int:
    """Interruptions that found the run at work."""
    return sum(trial["hit"] for trial in trials if trial["way"] == way)


def uninterrupted(path: Path, ranks: int, seed: int) -> tuple[RunFolder, float]:
    """A run without a break, and how long it trained, from its first checkpoint to its summary."""
    job = Job(path, ranks, seed)
    job.wait_for_checkpoint()
    started = time.monotonic()
    while not job.is_done() and job.process.poll() is None:
        time.sleep(0.02)
    seconds = time.monotonic() - started
    if (code := job.wait(LONGEST)) != 0:
        raise RuntimeError(f"the run without a break ended with exit code {code}: {job.log()}")
    return RunFolder(path), seconds


class Job:
    """torchrun with `ranks` processes of `sparsekern train` that begin or continue the run at `path`.

    With one rank and no restarts, the command itself.
    """

    def __init__(
        self, path: Path, ranks: int, seed: int, restarts: int | None = None, more: Sequence[str] = ()
    ) -> None:
        self.path, self.log_path = path, path.with_suffix(".log")
        words = ["-m", "sparsekern", "train", *TRAIN, "--seed", str(seed), "--output", str(path), "--resume", "auto"]
        words += more
        if ranks > 1 or restarts is not None:
            launcher = ["--nnodes=1", f"--nproc-per-node={ranks}", f"--max-restarts={restarts or 0}"]
            launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # a free port
            words = ["-m", "torch.distributed.run", *launcher, *words]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None where it does not end; it and all that it started are then killed."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in list(family(self.process.pid)):  # torchrun's processes are in sessions of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            return None

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + LONGEST
        while not RunFolder(self.path).checkpoints.exist() and self.process.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no checkpoint after {LONGEST:g} s: {self.log()}")
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Processes that train: the job's own where it has no launcher."""
        return [pid for pid in family(self.process.pid) if b"sparsekern\0train" in command(pid)]

    def signal_workers(self, number: signal.Signals, draw: random.Random | None = None) -> bool:
        """Sends a signal to all, or to one of them. False where none is there any more."""
        found = [pid for pid in self.workers() if b"torch.distributed.run" not in command(pid)]
        if draw is not None and found:
            found = [draw.choice(found)]
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return False
        return bool(found)

    def strike(self, number: signal.Signals, draw: random.Random | None = None) -> tuple[bool, bool]:
        """Sends a signal as `signal_workers` does. Whether it found the run at work, and a checkpoint being written."""
        at_work = not self.is_done()
        hit = self.signal_workers(number, draw)
        return hit and at_work, any(self.path.glob(".*.tmp"))

    def is_done(self) -> bool:
        return RunFolder(self.path).summary.exists()

    def log(self) -> str:
        return self.log_path.read_text()[-LOG:]


def kill(path: Path, whole: RunFolder, ranks: int, seed: int, seconds: float) -> dict[str, Any]:
    """SIGKILL of a rank, `seconds` after the first checkpoint."""
    job = begin(path, ranks, seed, seconds)
    hit, saving = job.strike(signal.SIGKILL, random.Random(seconds))
    started = time.monotonic()
    code = job.wait(TIMEOUT)
    took = time.monotonic() - started
    found = {"hit": hit, "while_saving": saving, "code": code, "seconds_to_end": took}
    return found | {"ended": job.is_done() or code not in (None, 0), **finish(path, whole, ranks, seed)}


def restart(path: Path, whole: RunFolder, ranks: int, seed: int, seconds: float) -> dict[str, Any]:
    """SIGKILL of a rank; torchrun starts all of them again."""
    job = begin(path, ranks, seed, seconds, restarts=1)
    hit, saving = job.strike(signal.SIGKILL, random.Random(seconds))
    code = job.wait(LONGEST)
    return {"hit": hit, "while_saving": saving, "code": code, "ended": code == 0, **compare(path, whole)}


def stop(path: Path, whole: RunFolder, ranks: int, seed: int, seconds: float) -> dict[str, Any]:
    """SIGTERM of all ranks, and of torchrun where there is one, which passes it on to them."""
    job = begin(path, ranks, seed, seconds)
    hit, saving = job.strike(signal.SIGTERM)
    if ranks > 1 and hit:
        job.process.send_signal(signal.SIGTERM)
    code = job.wait(TIMEOUT)
    # torchrun has an exit code of its own for workers that ended with one.
    as_told = code == (SAVED_ON_SIGTERM if ranks == 1 else 1) and "stopped at step" in job.log()
    found = {"hit": hit, "while_saving": saving, "code": code, "ended": as_told or job.is_done()}
    return found | finish(path, whole, ranks, seed)


def hang(path: Path, whole: RunFolder, ranks: int, seed: int, seconds: float) -> dict[str, Any]:
    """SIGSTOP of one of several ranks, in the first half of the run: the others have still to meet it."""
    job = begin(path, ranks, seed, seconds / 2, more=("--timeout", str(PATIENCE)))
    hit, saving = job.strike(signal.SIGSTOP, random.Random(seconds))
    started = time.monotonic()
    code = job.wait(PATIENCE + GRACE + TIMEOUT)
    took = time.monotonic() - started
    found = {"hit": hit, "while_saving": saving, "code": code, "seconds_to_end_hung": took}
    return found | {"ended": job.is_done() or code not in (None, 0), **finish(path, whole, ranks, seed)}


def orphan(path: Path, whole: RunFolder, ranks: int, seed: int, seconds: float) -> dict[str, Any]:
    """SIGKILL of torchrun, which leaves its ranks without a parent."""
    job = begin(path, ranks, seed, seconds)
    left = [pid for pid in job.workers() if pid != job.process.pid]
    hit, saving = not job.is_done() and bool(left), any(path.glob(".*.tmp"))
    job.process.kill()
    started = time.monotonic()
    job.process.wait()
    while any(is_alive(pid) for pid in left) and time.monotonic() < started + TIMEOUT:
        time.sleep(0.02)
    took = time.monotonic() - started
    by_themselves = not any(is_alive(pid) for pid in left) and ("all is saved" in job.log() or job.is_done())
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    found = {"hit": hit, "while_saving": saving, "ended": by_themselves}
    return found | {"seconds_to_end_orphaned": took, **finish(path, whole, ranks, seed)}


def double(path: Path, whole: RunFolder, ranks: int, seed: int, seconds: float) -> dict[str, Any]:
    """The same command a second time, while the first one is held at a random moment, or it would soon be over."""
    job = begin(path, ranks, seed, seconds)
    hit, saving = job.strike(signal.SIGSTOP)
    second = Job(path, ranks, seed)
    refused = second.wait(LONGEST)
    said = f"{path} is in use: process " in job.log()
    job.signal_workers(signal.SIGCONT)
    code = job.wait(LONGEST)
    found = {"hit": hit, "while_saving": saving, "code": code, "code_of_the_second": refused}
    return found | {"ended": code == 0 and ((refused == 1 and said) or not hit), **compare(path, whole)}


WAYS = {"killed": kill, "restarted": restart, "stopped": stop, "hung": hang, "orphaned": orphan, "doubled": double}


def begin(
    path: Path, ranks: int, seed: int, seconds: float, restarts: int | None = None, more: Sequence[str] = ()
) -> Job:
    """A job that is `seconds` past its first checkpoint."""
    job = Job(path, ranks, seed, restarts, more)
    job.wait_for_checkpoint()
    time.sleep(seconds)
    return job


def finish(path: Path, whole: RunFolder, ranks: int, seed: int) -> dict[str, Any]:
    code = Job(path, ranks, seed).wait(LONGEST)
    return {"code_of_the_restart": code, **compare(path, whole)}


def compare(path: Path, whole: RunFolder) -> dict[str, Any]:
    """Whether a finished run's weights, optimizer, random state and CSVs are those of another, times apart."""
    mine, theirs = RunFolder(path), whole
    if not mine.summary.exists():
        return {"same": False}
    states = [load_checkpoint(folder.checkpoint) for folder in (mine, theirs)]
    parts = [
        equal(states[0][part], states[1][part])
        for part in ("model", "optimizer", "scheduler", "growth", "loader", "rng")
    ]
    parts.append(equal(*(state.get("processes") and [each["rng"] for each in state["processes"]] for state in states)))
    logs = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in read_csv(log.path)]
        for folder in (mine, theirs)
        for log in (folder.metrics, folder.topology)
    ]
    return {"same": all(parts) and logs[:2] == logs[2:]}


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def family(process: int) -> Iterator[int]:
    """A process and its descendants."""
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def is_alive(process: int) -> bool:
    """Whether it is there and has not ended, as one that nobody waited for has."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
