"""What a run writes down while it trains: its CSV files always, TensorBoard's where that is installed."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from sparsekern.training.board import Board, wants_board
from sparsekern.training.folder import RunFolder
from sparsekern.training.resources import memory_now
from sparsekern.training.trainer import Trainer


class RunLog:
    """The log of one run in its folder. Whatever depends on the machine goes to resources.csv alone, but for the
    seconds of metrics.csv: the other files of a run that resumed are those of one that was never stopped."""

    def __init__(self, folder: RunFolder, trainer: Trainer) -> None:
        self.folder, self.trainer = folder, trainer
        self.writes = trainer.processes.leads  # of several processes the first
        wanted = self.writes and wants_board(trainer.config.run.tensorboard)
        self.board = Board(folder.path / "tensorboard", trainer.step) if wanted else None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.board is not None:
            self.board.close()

    def step(self, updates: list[dict[str, Any]]) -> None:
        """After every step, with what `Trainer.train_step` returned."""
        if not (updates and self.writes) or self.trainer.observer is None:
            return
        self.folder.topology.append(updates)
        if self.board is not None:
            self.board.update(updates)
        self.resources("update", self.trainer.observer.seconds, self.trainer.step_seconds)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """After every epoch, with what `Trainer.finish_epoch` returned."""
        if not self.writes:
            return
        layers = self.trainer.layer_rows()
        self.folder.metrics.append([metrics])
        self.folder.layers.append(layers)
        if self.board is not None:
            self.board.epoch(metrics, layers)
        self.resources("epoch", metrics["seconds"], metrics["seconds"] / len(self.trainer.loader))

    def resources(self, what: str, seconds: float, step_seconds: float) -> None:
        row = {"step": self.trainer.step, "what": what, "seconds": seconds, "step_seconds": step_seconds}
        row |= memory_now(self.trainer.device)
        self.folder.resources.append([row])
        if self.board is not None:
            self.board.resources(row)
