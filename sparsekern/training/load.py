"""The network that a run trained."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from sparsekern.training.folder import RunFolder
from sparsekern.training.trainer import Trainer


def load_model(run: str | os.PathLike[str]) -> nn.Module:
    """The network in the last checkpoint of a run folder, in eval mode, on the run's device.

    With a moving average of the weights, it is the average.

    Raises FileNotFoundError where there is no run, CheckpointError for a checkpoint that is damaged or does not fit.
    """
    folder = RunFolder(Path(run))
    trainer = Trainer(folder.load_config(), restoring=True)
    trainer.any_processes = True
    folder.load(trainer)
    return trainer.evaluated.eval()
