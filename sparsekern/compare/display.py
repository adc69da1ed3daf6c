"""What a person sees while runs go on side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.process import RunProcess
from sparsekern.compare.report import Report
from sparsekern.training.config import TrainConfig
from sparsekern.training.progress import make_progress, tell


class Display:
    """A bar over the epochs of all runs, on a terminal, and a line for each run that ends, with a report written anew.

    `configs` are the runs' by name.
    """

    def __init__(
        self,
        console: Console,
        folder: CompareFolder,
        configs: dict[str, TrainConfig],
        finished: Sequence[str],
        report: Report,
    ) -> None:
        self.console, self.folder, self.report = console, folder, report
        self.epochs = {name: config.run.epochs for name, config in configs.items()}
        self.done = {name: self.epochs[name] for name in finished}
        self.finished = len(finished)
        self.progress = make_progress(console, "epochs")
        self.task = self.progress.add_task("comparing", total=sum(self.epochs.values()), numbers="")

    def __enter__(self) -> Display:
        if self.finished:
            self.say(f"{self.finished} of {len(self.epochs)} runs are finished already")
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

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
        accuracy = run.run.load_summary()["test_accuracy"]
        self.say(f"{run.cell.name}: {accuracy:.2%} ({self.finished} of {len(self.epochs)} runs)")
        self.report.write()

    def show_failed(self, run: RunProcess) -> None:
        self.say(run.failure())
