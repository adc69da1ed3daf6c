"""A comparison from its grid to its report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sparsekern.compare.capacity import Capacity
from sparsekern.compare.display import Display
from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Grid
from sparsekern.compare.lock import FolderLock
from sparsekern.compare.report import Report
from sparsekern.compare.schedule import run_cells
from sparsekern.training.progress import tell


def run_grid(grid: Grid, path: Path, jobs: int | None, console: Console) -> int:
    """Trains what the grid lacks in the folder at `path`, and makes results.csv, results.md and accuracy.png of it.

    Runs that are finished there are left as they are, begun ones go on, and those of earlier grids stay in the tables.

    Args:
        jobs: runs at a time; None for as many as the cores and the memory at hand allow.

    Returns the exit code: 0, 1 where a run failed, 128 + signal where one stopped the comparison. Raises ValueError,
    before anything starts, for a run that cannot be made, for a folder with other axes or options, and for one where a
    comparison is at work; FileExistsError for a folder with something else.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs!r}")
    cells = grid.cells()
    configs = {cell.name: grid.config(cell) for cell in cells}
    folder = CompareFolder(path)
    folder.create()
    with FolderLock(path) as lock:
        report = Report(folder, folder.add(grid), grid.options)
        report.write()
        left = [cell for cell in cells if not folder.is_finished(cell)]
        finished = [cell.name for cell in cells if cell not in left]
        shared = configs[cells[0].name].run
        capacity = Capacity(jobs, len(cells), shared.threads, shared.device)
        with Display(console, folder, configs, finished, report) as display:
            outcome = run_cells(grid, left, folder, lock, capacity, display)
        if outcome.signal is not None:
            return 128 + outcome.signal
        report.show(console)
    if outcome.failed:
        names = ", ".join(outcome.failed)
        tell(console, f"{len(outcome.failed)} of {len(cells)} runs failed: {names}. The same command tries them again.")
        return 1
    return 0
