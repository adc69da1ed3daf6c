"""Sealed files: a safetensors file of a named format and version, with a text and a SHA-256 over everything."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekern.atomic import replace_file


def save_sealed(path: Path, form: str, version: int, text: str, tensors: dict[str, Tensor]) -> None:
    """Writes contiguous CPU tensors and a text. An old file stays whole until the new one is.

    Raises OSError where the file cannot be written.
    """
    metadata = {
        "format": form,
        "version": str(version),
        "state": text,
        "sha256": checksum(version, text, tensors),
    }

    def write(aside: Path) -> None:
        try:
            save_file(tensors, aside, metadata)
        except SafetensorError as error:
            raise as_os_error(error, path) from error

    replace_file(path, write)


def as_os_error(error: SafetensorError, path: Path) -> OSError:
    """safetensors tells what the system said in its message alone: "... (os error 28)"."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(f"{path} cannot be written: {error}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def load_sealed(
    path: Path, form: str, version: int, error: type[ValueError], damaged: type[ValueError] | None = None
) -> tuple[str, dict[str, Tensor]]:
    """The text and the tensors of a file that `save_sealed` wrote, on the CPU.

    Raises FileNotFoundError, `error` for a newer file, and `damaged` (by default `error`) for one that is truncated,
    damaged or of another format.
    """
    damaged = damaged or error
    if not path.is_file():
        raise FileNotFoundError(f"no {form.removeprefix('sparsekern ')} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = check_version(path, metadata, form, version, error, damaged)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as broken:
        raise damaged(f"{path} is truncated or damaged: {broken}") from broken
    text = metadata.get("state", "")
    if checksum(found, text, tensors) != metadata.get("sha256"):
        raise damaged(f"{path} is damaged: its contents do not match their checksum")
    return text, tensors


def check_version(
    path: Path, metadata: dict[str, str], form: str, version: int, error: type[ValueError], damaged: type[ValueError]
) -> int:
    """The file's version."""
    if metadata.get("format") != form or not metadata.get("version", "").isdecimal():
        raise damaged(f"{path} is a safetensors file, but not a {form.removeprefix('sparsekern ')} of sparsekern")
    if int(metadata["version"]) > version:
        raise error(
            f"{path} has format {metadata['version']}, newer than format {version} of this version of sparsekern: "
            "upgrade sparsekern to read it"
        )
    return int(metadata["version"])


def checksum(version: int, text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{version}\n{text}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
