"""Checkpoints: one safetensors file, written whole or not at all, checked when read.

The tensors of all state_dicts lie in the file under their paths ("model/head.weight"); the rest is JSON in the
header's metadata, with the format's version and a SHA-256 over everything.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekern.training.atomic import replace_file
from sparsekern.training.statetree import pack, unpack

FORMAT = "sparsekern checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says why."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a tree of dicts, lists, tuples, tensors and plain values. An old file stays whole until the new one is."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(pack(state, tensors))
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "state": tree,
        "sha256": checksum(VERSION, tree, tensors),
    }
    replace_file(path, lambda aside: save_file(tensors, aside, metadata))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on the CPU.

    Raises FileNotFoundError, or CheckpointError for a file that is truncated, damaged, of another kind or newer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_version(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    if checksum(VERSION, metadata.get("state", ""), tensors) != metadata.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its contents do not match their checksum")
    return unpack(json.loads(metadata["state"]), tensors)


def check_version(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT or not metadata.get("version", "").isdecimal():
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of sparsekern")
    if int(metadata["version"]) > VERSION:
        raise CheckpointError(
            f"{path} has format {metadata['version']}, newer than format {VERSION} of this version of sparsekern: "
            "upgrade sparsekern to read it"
        )


def checksum(version: int, tree: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{version}\n{tree}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
