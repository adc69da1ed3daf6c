"""Sealed files: a safetensors file of a named format and version, with a text and a SHA-256 over everything."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from sparsekern.atomic import replace_file


def save_sealed(path: Path, form: str, version: int, text: str, tensors: dict[str, Tensor]) -> None:
    """Writes contiguous CPU tensors and a text. An old file stays whole until the new one is."""
    # Here, not above: layers and kernels are of use where files cannot be written.
    from safetensors.torch import save_file

    metadata = {
        "format": form,
        "version": str(version),
        "state": text,
        "sha256": checksum(version, text, tensors),
    }
    replace_file(path, lambda aside: save_file(tensors, aside, metadata))


def load_sealed(path: Path, form: str, version: int, error: type[ValueError]) -> tuple[str, dict[str, Tensor]]:
    """The text and the tensors of a file that `save_sealed` wrote, on the CPU.

    Raises FileNotFoundError, or `error` for a file that is truncated, damaged, of another format or newer.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no {form.removeprefix('sparsekern ')} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_version(path, metadata, form, version, error)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as broken:
        raise error(f"{path} is truncated or damaged: {broken}") from broken
    text = metadata.get("state", "")
    if checksum(version, text, tensors) != metadata.get("sha256"):
        raise error(f"{path} is damaged: its contents do not match their checksum")
    return text, tensors


def check_version(path: Path, metadata: dict[str, str], form: str, version: int, error: type[ValueError]) -> None:
    if metadata.get("format") != form or not metadata.get("version", "").isdecimal():
        raise error(f"{path} is a safetensors file, but not a {form.removeprefix('sparsekern ')} of sparsekern")
    if int(metadata["version"]) > version:
        raise error(
            f"{path} has format {metadata['version']}, newer than format {version} of this version of sparsekern: "
            "upgrade sparsekern to read it"
        )


def checksum(version: int, text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{version}\n{text}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
