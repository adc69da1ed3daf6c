"""States of a real run, to be saved and compared."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sparsekern.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SparsityConfig,
    TrainConfig,
)
from sparsekern.training.statetree import pack
from sparsekern.training.trainer import Trainer


def config(seed: int, width: int, **changes: Any) -> TrainConfig:
    """A small ResNet under GSE with an update at every other step."""
    return TrainConfig(
        model=ModelConfig("resnet", width=width, depth=8),
        sparsity=SparsityConfig(density=0.2),
        data=DataConfig(batch_size=128),
        growth=GrowthConfig(interval=2, end=1.0),
        optimizer=OptimizerConfig("adamw"),
        run=RunConfig(seed=seed, threads=1, plots=False, **changes),
    )


def two_states(seed: int, width: int = 64) -> list[dict[str, Any]]:
    """A run's state after its first and after its second step."""
    trainer = Trainer(config(seed, width))
    states = []
    for images, labels in trainer.loader:
        trainer.train_step(images, labels)
        states.append(copy.deepcopy(trainer.state_dict()))
        if len(states) == 2:
            break
    return states


def at_step(state: dict[str, Any], step: int) -> dict[str, Any]:
    """The same state as of another step."""
    return {**state, "progress": {**state["progress"], "step": step}}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Equal in every value and every bit."""
    packed: list[tuple[Any, dict[str, Tensor]]] = []
    for state in (left, right):
        tensors: dict[str, Tensor] = {}
        packed.append((pack(state, tensors), tensors))
    (text, mine), (other_text, theirs) = packed
    return text == other_text and mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
