"""A comparison from its grid to its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparsekern.compare.capacity import Capacity
from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Cell, Grid
from sparsekern.compare.lock import FolderLock
from sparsekern.compare.page import accuracy_table, render
from sparsekern.compare.plots import draw_plot
from sparsekern.compare.process import RunProcess
from sparsekern.compare.results import read_result, read_results, write_csv
from sparsekern.compare.schedule import Watchers, run_cells
from sparsekern.training.atomic import replace_file
from sparsekern.training.config import TrainConfig
from sparsekern.training.progress import make_progress


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
        every = folder.add(grid)
        report = Report(folder, every, grid.options)
        report.write()
        left = [cell for cell in cells if not folder.is_finished(cell)]
        with Display(console, folder, cells, configs, report) as display:
            first = configs[cells[0].name].run
            capacity = Capacity(jobs, len(cells), first.threads, first.device)
            outcome = run_cells(grid, left, folder, lock, capacity, display.watchers())
        report.write()
        if outcome.signal is not None:
            return 128 + outcome.signal
        report.draw(console)
        report.show(console)
    if outcome.failed:
        names = ", ".join(outcome.failed)
        tell(console, f"{len(outcome.failed)} of {len(cells)} runs failed: {names}. The same command tries them again.")
        return 1
    return 0


class Report:
    """What the folder's finished runs amount to."""

    def __init__(self, folder: CompareFolder, cells: Sequence[Cell], options: Sequence[str]) -> None:
        self.folder, self.cells, self.options = folder, cells, options

    def write(self) -> None:
        results = read_results(self.folder, self.cells)
        page = render(results, len(self.cells), self.options)
        if results:
            write_csv(self.folder.results, results)
        replace_file(self.folder.page, lambda aside: aside.write_text(page))

    def draw(self, console: Console) -> None:
        if results := read_results(self.folder, self.cells):
            draw_plot(self.folder.chart, results, console)

    def show(self, console: Console) -> None:
        if results := read_results(self.folder, self.cells):
            tell(console, f"\n{accuracy_table(results)}\n")
        tell(console, f"written to {self.folder.page}")


class Display:
    """A bar over all runs' epochs, and a line for each run that ends."""

    def __init__(
        self,
        console: Console,
        folder: CompareFolder,
        cells: Sequence[Cell],
        configs: dict[str, TrainConfig],
        report: Report,
    ) -> None:
        self.console, self.folder, self.report = console, folder, report
        self.epochs = {name: config.run.epochs for name, config in configs.items()}
        self.done = {cell.name: self.epochs[cell.name] for cell in cells if folder.is_finished(cell)}
        self.finished = len(self.done)
        self.progress = make_progress(console, "epochs")
        self.task = self.progress.add_task("comparing", total=sum(self.epochs.values()), numbers="")

    def __enter__(self) -> Display:
        if self.finished:
            self.say(f"{self.finished} of {len(self.epochs)} runs are finished already")
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def watchers(self) -> Watchers:
        return Watchers(self.say, self.show_progress, self.show_finished, self.show_failed)

    def say(self, text: str) -> None:
        tell(self.console, text)

    def show_progress(self, running: Sequence[RunProcess]) -> None:
        if self.console.is_terminal:
            self.done |= {run.cell.name: run.epochs_done() for run in running}
            numbers = f"{self.finished} of {len(self.epochs)} runs, {len(running)} running"
            self.progress.update(self.task, completed=sum(self.done.values()), numbers=numbers)

    def show_finished(self, run: RunProcess) -> None:
        self.finished += 1
        self.done[run.cell.name] = self.epochs[run.cell.name]
        accuracy = read_result(self.folder, run.cell).test_accuracy
        self.say(f"{run.cell.name}: {accuracy:.2%} ({self.finished} of {len(self.epochs)} runs)")
        self.report.write()

    def show_failed(self, run: RunProcess) -> None:
        self.say(run.failure())


def tell(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
