"""What a person sees while a run trains, and how they stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES_WITHOUT_TERMINAL = 10
PARENT = os.getppid()  # as early as can be: torchrun's agent, where that started this process


def tell(console: Console, text: str) -> None:
    """Prints as it is: no markup, no colours, no line breaks in the middle of paths and commands."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def make_progress(console: Console, unit: str) -> Progress:
    """A live bar on a terminal, nothing elsewhere. Its tasks have a field `numbers`, shown beside it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class ProgressBar:
    """A live bar on a terminal; elsewhere a line for about every tenth of the epochs."""

    def __init__(self, console: Console, label: str, step: int, total_steps: int, epochs: int) -> None:
        self.console, self.epochs = console, epochs
        self.progress = make_progress(console, "steps")
        self.task = self.progress.add_task(label, completed=step, total=total_steps, numbers="")

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def show_epoch(self, row: dict[str, Any]) -> None:
        dev = "" if row["dev_accuracy"] == "" else f"  dev {row['dev_accuracy']:.1%}"
        numbers = f"loss {row['loss']:.3f}  train {row['train_accuracy']:.1%}{dev}  test {row['test_accuracy']:.1%}"
        self.progress.update(self.task, numbers=numbers)
        epoch = row["epoch"]
        if not self.console.is_terminal and (
            epoch == self.epochs or epoch % -(-self.epochs // LINES_WITHOUT_TERMINAL) == 0
        ):
            self.console.print(f"epoch {epoch}/{self.epochs}  {numbers}", highlight=False)


class StopAsked(Exception):
    """A signal asks to stop, and the caller is where that can be done."""


class StopRequest:
    """Within it, the first Ctrl-C or SIGTERM only sets `signal`, to be acted on between steps; a second one acts.

    Not under torchrun, which passes on what a scheduler has sent to all processes of a job already, sends SIGTERM when
    another process has ended, and kills those that then take too long. Where torchrun itself was killed, which leaves
    its processes at work with nobody to end them, that counts as a SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> StopRequest:
        self.previous = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def asked(self) -> int:
        """The number of the signal that has come, 0 for none."""
        if self.signal is None and dist.is_torchelastic_launched() and os.getppid() != PARENT:
            with contextlib.suppress(OSError):  # standard error may have gone with it
                print("sparsekern train: torchrun was killed; saving and stopping", file=sys.stderr, flush=True)
            self.signal = signal.SIGTERM
        return self.signal or 0

    def check(self) -> None:
        """Raises StopAsked once a signal has come."""
        if self.asked():
            raise StopAsked

    def note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        if not dist.is_torchelastic_launched():
            self.restore()
