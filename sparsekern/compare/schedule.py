"""Runs side by side, until all have ended or a signal stops them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsekern.compare.capacity import Capacity
from sparsekern.compare.display import Display
from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Cell, Grid
from sparsekern.compare.lock import FolderLock
from sparsekern.compare.process import RunProcess
from sparsekern.training.progress import StopRequest

POLL = 0.1  # seconds


@dataclass
class Outcome:
    """What became of the runs: names of those that failed, and the signal that stopped the rest, if one did."""

    failed: list[str] = field(default_factory=list)
    signal: int | None = None


def run_cells(
    grid: Grid, cells: Sequence[Cell], folder: CompareFolder, lock: FolderLock, capacity: Capacity, display: Display
) -> Outcome:
    """Runs all of `cells`. On a first Ctrl-C or SIGTERM the running ones save and stop; on a second they are killed."""
    waiting, running, outcome = list(cells), list[RunProcess](), Outcome()
    lifeline, own_end = os.pipe()
    is_told = is_stopping = False
    try:
        with StopRequest() as stop:
            while running or (waiting and stop.signal is None):
                if stop.signal is not None and not is_stopping:
                    is_stopping = True
                    for run in running:
                        run.stop()
                while waiting and stop.signal is None and capacity.admits(running):
                    cell = waiting.pop(0)
                    running.append(RunProcess(grid, cell, folder, capacity.threads, lock.descriptor, lifeline))
                if capacity.is_settled and not is_told:
                    display.say(capacity.describe())
                    is_told = True
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    if folder.is_finished(run.cell):
                        display.show_finished(run)
                    elif is_stopping:
                        waiting.append(run.cell)
                    else:
                        outcome.failed.append(run.cell.name)
                        display.show_failed(run)
                display.show_progress(running)
                time.sleep(POLL)
            outcome.signal = stop.signal if waiting else None
    finally:
        for run in running:
            run.kill()
        os.close(own_end)
        os.close(lifeline)
    return outcome
