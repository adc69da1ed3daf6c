"""A run from its configuration to its report."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import torch
from rich.console import Console

from sparsekern.training.board import wants_board
from sparsekern.training.config import TrainConfig
from sparsekern.training.folder import RunFolder
from sparsekern.training.log import RunLog
from sparsekern.training.plots import draw_plots
from sparsekern.training.progress import ProgressBar, StopAsked, StopRequest, tell
from sparsekern.training.ranks import processes
from sparsekern.training.report import print_report, summarise
from sparsekern.training.trainer import Trainer

# sysexits.h's EX_TEMPFAIL, "to be tried again": a process that SIGTERM killed unsaved shows as 143.
SAVED_ON_SIGTERM = 75


class Stopped(Exception):
    """The run was saved and stopped before its end.

    `code` is the exit code: SAVED_ON_SIGTERM, 130 after Ctrl-C, as shells expect of it, 0 at stop_after.
    """

    def __init__(self, trainer: Trainer, code: int) -> None:
        super().__init__(f"stopped at step {trainer.step} of {trainer.total_steps}; all is saved. To go on:")
        self.code = code


def start(config: TrainConfig) -> tuple[Trainer, RunFolder]:
    """A new run in a new folder. Raises ValueError, ImportError or FileExistsError before anything is written."""
    trainer = build(config)
    folder = RunFolder(processes().first(lambda: RunFolder.create(config).path))
    folder.save(trainer)
    return trainer, folder


def resume(config: TrainConfig, folder: RunFolder) -> Trainer:
    """The run in `folder` where its checkpoint left it. Raises FileNotFoundError or CheckpointError."""
    trainer = build(config, restoring=True)
    folder.restore(trainer)
    return trainer


def build(config: TrainConfig, *, restoring: bool = False) -> Trainer:
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    try:
        torch.empty(0, device=config.run.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {config.run.device!r} cannot be used: {error}") from error
    wants_board(config.run.tensorboard)
    return Trainer(config, restoring=restoring)


def run(trainer: Trainer, folder: RunFolder, console: Console) -> None:
    """Trains to the end, then the dense twin where asked for, and reports. Raises Stopped."""
    with StopRequest() as stop:
        summary = finish(trainer, folder, console, stop)
        twin_summary = None
        if trainer.config.run.twin and not trainer.config.sparsity.is_dense:
            twin, twin_folder = dense_twin(trainer.config, folder)
            twin_summary = finish(twin, twin_folder, console, stop)
    if trainer.processes.leads:
        print_report(console, summary, twin_summary)


def dense_twin(config: TrainConfig, folder: RunFolder) -> tuple[Trainer, RunFolder]:
    """The same run without sparsity in RUN/dense, from its checkpoint if it was begun before."""
    twin_folder = RunFolder(folder.path / "dense")
    twin_config = dataclasses.replace(
        config,
        sparsity=dataclasses.replace(config.sparsity, dense=True),
        run=dataclasses.replace(config.run, twin=False, output=twin_folder.path, stop_after=None),
    )
    if processes().first(twin_folder.holds_run):
        return resume(twin_config, twin_folder), twin_folder
    return start(twin_config)


def finish(trainer: Trainer, folder: RunFolder, console: Console, stop: StopRequest) -> dict[str, Any]:
    """Trains what is left of a run, draws its plots and returns its summary, which the first process alone has."""
    fit(trainer, folder, console, stop)
    if not trainer.processes.leads:
        return {}
    summary = summarise(trainer, folder)
    folder.write_summary(summary)
    if trainer.config.run.plots:
        draw_plots(folder, console)
    return summary


def fit(trainer: Trainer, folder: RunFolder, console: Console, stop: StopRequest) -> None:
    """The training loop. Raises Stopped, FloatingPointError, or OSError where the run cannot be saved."""
    config = trainer.config.run
    if (report := trainer.rescale()) is not None:
        tell(console, report.brief)
    bar = ProgressBar(console, trainer.config.label, trainer.step, trainer.total_steps, config.epochs)
    together = trainer.processes

    def check() -> None:
        """Raises StopAsked once a signal has come to one of the processes, at the same step on all of them."""
        if number := together.most(stop.asked()):
            stop.signal = signal.Signals(number)
            raise StopAsked

    with bar, RunLog(folder, trainer) as log:
        try:
            while trainer.epoch < config.epochs:
                for images, labels in trainer.batches():
                    log.step(trainer.train_step(images, labels))
                    bar.advance(trainer.step)
                    check()
                    if trainer.step == config.stop_after:
                        raise StopAsked
                    if config.save_every is not None and trainer.step % config.save_every == 0:
                        folder.save(trainer)
                metrics = trainer.finish_epoch(stop.check)
                log.epoch(metrics)
                bar.show_epoch(metrics)
                if trainer.epoch % config.checkpoint_every == 0 or trainer.epoch == config.epochs:
                    folder.save(trainer)
        except StopAsked:
            if number := together.most(stop.signal or 0):  # in a test, it may have come to others
                stop.signal = signal.Signals(number)
            folder.save(trainer)
            raise Stopped(trainer, exit_code(stop.signal)) from None


def exit_code(number: signal.Signals | None) -> int:
    if number is None:
        return 0
    return SAVED_ON_SIGTERM if number == signal.SIGTERM else 128 + number
