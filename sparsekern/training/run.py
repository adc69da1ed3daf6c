"""A run from its configuration to its report."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from rich.console import Console

from sparsekern.training.board import wants_board
from sparsekern.training.config import TrainConfig
from sparsekern.training.folder import RunFolder
from sparsekern.training.log import RunLog
from sparsekern.training.plots import draw_plots
from sparsekern.training.progress import ProgressBar, StopRequest, tell
from sparsekern.training.report import print_report, summarise
from sparsekern.training.trainer import Trainer


class Stopped(Exception):
    """The run was saved and stopped before its end: by a signal (`code` 128 + its number) or by stop_after (0)."""

    def __init__(self, trainer: Trainer, code: int) -> None:
        super().__init__(f"stopped at step {trainer.step} of {trainer.total_steps}; all is saved. To go on:")
        self.code = code


def start(config: TrainConfig) -> tuple[Trainer, RunFolder]:
    """A new run in a new folder. Raises ValueError, ImportError or FileExistsError before anything is written."""
    trainer = build(config)
    folder = RunFolder.create(config)
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
    summary = finish(trainer, folder, console)
    twin_summary = None
    if trainer.config.run.twin and not trainer.config.sparsity.is_dense:
        twin, twin_folder = dense_twin(trainer.config, folder)
        twin_summary = finish(twin, twin_folder, console)
    print_report(console, summary, twin_summary)


def dense_twin(config: TrainConfig, folder: RunFolder) -> tuple[Trainer, RunFolder]:
    """The same run without sparsity in RUN/dense, from its checkpoint if it was begun before."""
    twin_folder = RunFolder(folder.path / "dense")
    twin_config = dataclasses.replace(
        config,
        sparsity=dataclasses.replace(config.sparsity, dense=True),
        run=dataclasses.replace(config.run, twin=False, output=twin_folder.path, stop_after=None),
    )
    if twin_folder.checkpoint.exists():
        return resume(twin_config, twin_folder), twin_folder
    return start(twin_config)


def finish(trainer: Trainer, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Trains what is left of a run, draws its plots and returns its summary."""
    fit(trainer, folder, console)
    summary = summarise(trainer, folder)
    folder.write_summary(summary)
    if trainer.config.run.plots:
        draw_plots(folder, console)
    return summary


def fit(trainer: Trainer, folder: RunFolder, console: Console) -> None:
    """The training loop."""
    config = trainer.config.run
    if (report := trainer.rescale()) is not None:
        tell(console, report.brief)
    bar = ProgressBar(console, trainer.config.label, trainer.step, trainer.total_steps, config.epochs)
    with StopRequest() as stop, bar, RunLog(folder, trainer) as log:
        while trainer.epoch < config.epochs:
            for images, labels in trainer.loader:
                log.step(trainer.train_step(images, labels))
                bar.advance(trainer.step)
                if stop.signal is not None or trainer.step == config.stop_after:
                    folder.save(trainer)
                    raise Stopped(trainer, code=0 if stop.signal is None else 128 + stop.signal)
            metrics = trainer.finish_epoch()
            log.epoch(metrics)
            bar.show_epoch(metrics)
            if trainer.epoch % config.checkpoint_every == 0 or trainer.epoch == config.epochs:
                folder.save(trainer)
