"""The network that a run trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsekern.models import make_model
from sparsekern.training.checkpoint import CheckpointError, load_checkpoint
from sparsekern.training.folder import RunFolder
from sparsekern.training.topology import build_topology
from sparsekern.training.trainer import Trainer


def load_model(run: str | os.PathLike[str]) -> nn.Module:
    """The network in the last checkpoint of a run folder, in eval mode, on the run's device.

    With a moving average of the weights, it is the average. The data set is not read, but of a run that still has its
    ghosts and of one whose checkpoint an older version wrote.

    Raises FileNotFoundError where there is no run, CheckpointError for a checkpoint that is damaged or does not fit.
    """
    return load_trained(run)[0]


def load_trained(run: str | os.PathLike[str], *, plain: bool = False) -> tuple[nn.Module, tuple[int, int, int]]:
    """`load_model`'s network, and the (channels, height, width) of the images that it takes.

    Raises ValueError too, where a `plain` network is asked for and the run still has its ghosts.
    """
    folder = RunFolder(Path(run))
    config = folder.load_config()
    state = load_checkpoint(folder.checkpoint)
    until = ghosts_until(state)
    if plain and until is not None:
        raise ValueError(
            f"{folder.path} is at step {state['progress']['step']}, and its ghosts are gone after step {until} alone: "
            f"until then its network is another one. sparsekern train --resume {folder.path} goes on"
        )
    if until is not None or "images" not in state:
        trainer = Trainer(config, restoring=True)
        trainer.any_processes = True
        folder.load(trainer)
        return trainer.evaluated.eval(), (trainer.data.channels, trainer.data.size, trainer.data.size)
    channels, size, classes = state["images"]
    with torch.device("cpu" if config.sparsity.is_dense else "meta"):
        model = make_model(config.model.name, channels, size, classes, **config.model.options())
    if not config.sparsity.is_dense:
        build_topology(config.sparsity, model, torch.Generator(), restoring=True)
    model.to(torch.float64 if config.run.dtype == "float64" else torch.float32)
    average = state.get("average")
    try:
        model.load_state_dict(state["model"] if average is None else average["model"])
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{folder.checkpoint} cannot be used: its contents do not fit this run: {error}"
        ) from error
    return model.to(config.run.device).eval(), (channels, size, size)


def ghosts_until(state: dict[str, Any]) -> int | None:
    """The step after which a checkpoint's network is without ghosts; None where it is."""
    ghosts = state.get("tost")
    if ghosts is None or ghosts["step"] >= ghosts["config"]["steps"]:
        return None
    return int(ghosts["config"]["steps"])
