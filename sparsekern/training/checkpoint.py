"""Checkpoints: one safetensors file, written whole or not at all, checked when read.

The tensors of all state_dicts lie in the file under their paths ("model/head.weight"); the rest is JSON in the
header's metadata, with the format's version and a SHA-256 over everything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsekern.sealed import load_sealed, save_sealed
from sparsekern.training.statetree import pack, unpack

FORMAT = "sparsekern checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says why."""


class DamagedCheckpoint(CheckpointError):
    """A file that is truncated, damaged or no checkpoint at all: an earlier one may do in its place."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a tree of dicts, lists, tuples, tensors and plain values. An old file stays whole until the new one is.

    Raises OSError where the file cannot be written, TypeError for what cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(pack(state, tensors))
    save_sealed(path, FORMAT, VERSION, tree, tensors)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on the CPU.

    Raises FileNotFoundError, CheckpointError for a newer file, DamagedCheckpoint for any other that cannot be read.
    """
    tree, tensors = load_sealed(path, FORMAT, VERSION, CheckpointError, DamagedCheckpoint)
    return unpack(json.loads(tree), tensors)
