"""The training inside a lottery ticket's rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from torch import nn

from sparsekern.training.config import TrainConfig
from sparsekern.training.progress import tell
from sparsekern.training.trainer import Totals, Trainer


class TicketRounds:
    """The functions that `sparsekern.masks.lottery_ticket` trains with, from a run's configuration.

    Each round goes through the same steps with the same data: all of the run's, or, after a warm-up of `rewind` steps,
    those that are left, with the learning rate and the batches that follow the warm-up and a fresh optimizer.

    Raises ValueError for a warm-up as long as the run, and FloatingPointError where the loss diverges.
    """

    def __init__(self, config: TrainConfig, rewind: int, console: Console) -> None:
        # The model is given, and may be sparse: nothing here is to be made sparse or grown.
        self.config = dataclasses.replace(config, sparsity=dataclasses.replace(config.sparsity, dense=True))
        self.rewind = rewind
        self.console = console
        self.number = 0
        self.after_warm_up: dict[str, Any] | None = None

    def warm_up(self, model: nn.Module) -> None:
        trainer = Trainer(self.config, model)
        if self.rewind >= trainer.total_steps:
            raise ValueError(f"rewind must be below the {trainer.total_steps} steps of training, got {self.rewind}")
        while trainer.step < self.rewind:
            for images, labels in trainer.loader:
                trainer.train_step(images, labels)
                if trainer.step == self.rewind:
                    break
            else:
                trainer.finish_epoch()
        self.after_warm_up = trainer.state_dict()

    def train(self, model: nn.Module) -> None:
        self.number += 1
        trainer = Trainer(self.config, model)
        if self.after_warm_up is not None:
            self.skip_warm_up(trainer, self.after_warm_up)
        metrics: dict[str, Any] = {}
        while trainer.epoch < self.config.run.epochs:
            for images, labels in trainer.loader:
                trainer.train_step(images, labels)
            metrics = trainer.finish_epoch()
        left = f"{trainer.nnz:,} edges" if trainer.nnz else "dense"
        accuracy = metrics["test_accuracy"]
        tell(self.console, f"round {self.number}: {left}, test accuracy {accuracy:.2%}")

    @staticmethod
    def skip_warm_up(trainer: Trainer, state: dict[str, Any]) -> None:
        """Brings a new trainer to where the warm-up ended, but for the model and the optimizer's momenta."""
        trainer.optimizer.load_state_dict({"state": {}, "param_groups": state["optimizer"]["param_groups"]})
        trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.loader.load_state_dict(state["loader"])
        progress = state["progress"]
        trainer.epoch, trainer.step, trainer.totals = progress["epoch"], progress["step"], Totals(**progress["totals"])
