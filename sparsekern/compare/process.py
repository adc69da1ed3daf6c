"""A run as a process of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TextIO

from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Cell, Grid
from sparsekern.compare.machine import resident_memory

LOG_TAIL = 12  # lines
SETTLED_AFTER = 60.0  # seconds; a run that has tested no epoch by then has at least taken its first steps


class RunProcess:
    """A cell's run, begun anew or from its checkpoint.

    It inherits `lock`, the descriptor of the folder's lock, and `lifeline`, the reading end of a pipe that closes when
    this process ends.
    """

    def __init__(self, grid: Grid, cell: Cell, folder: CompareFolder, threads: int, lock: int, lifeline: int) -> None:
        self.cell, self.folder, self.run = cell, folder, folder.run(cell)
        self.log_path = folder.log(cell)
        self.peak = 0
        words = self.command(grid, threads)
        self.epochs_before = self.epochs_done()
        self.started = time.monotonic()
        with self.log_path.open("a") as log:
            self.process = self.start(words, log, lock, lifeline)

    def command(self, grid: Grid, threads: int) -> list[str]:
        """A begun run keeps its number of threads: results need not be the same to the bit under another."""
        path = str(self.run.path)
        if self.run.checkpoint.exists():
            return ["--resume", path]
        shutil.rmtree(self.run.path, ignore_errors=True)  # killed before its first checkpoint
        return ["--threads", str(threads), *grid.words(self.cell), "--output", path]

    def start(self, words: list[str], log: TextIO, lock: int, lifeline: int) -> subprocess.Popen[bytes]:
        log.write(f"$ {shlex.join(['sparsekern', 'train', *words])}\n")
        log.flush()
        # The child imports what this process has imported, from wherever that was found.
        paths = [os.path.abspath(path) for path in sys.path]
        return subprocess.Popen(
            [sys.executable, "-m", "sparsekern.compare.member", *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "COLUMNS": "120"},
            stdin=lifeline,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the runs
        )

    def epochs_done(self) -> int:
        path = self.run.metrics.path
        return max(0, path.read_text().count("\n") - 1) if path.exists() else 0

    def memory(self) -> tuple[int, int]:
        """(bytes in memory now, the most so far)."""
        now, peak = resident_memory(self.process.pid)
        self.peak = max(self.peak, peak)
        return now, self.peak

    def is_settled(self) -> bool:
        """Whether its memory will hardly grow further: it has trained and tested."""
        return self.epochs_done() > self.epochs_before or time.monotonic() - self.started > SETTLED_AFTER

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """At once, with all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def failure(self) -> str:
        """What to tell of a run that has ended without its summary: how, and the end of its log."""
        code = self.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        tail = self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        return "\n".join([f"{self.cell.name} {how}; the end of {self.log_path}:", *(f"    {line}" for line in tail)])
