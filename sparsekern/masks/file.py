"""Masks on disk: one safetensors file, written whole or not at all, checked when read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsekern.masks.masks import Masks
from sparsekern.pattern import Pattern
from sparsekern.sealed import load_sealed, save_sealed

FORMAT = "sparsekern mask file"
VERSION = 1


def save_masks(path: str | os.PathLike[str], masks: Masks) -> None:
    """Writes masks to one safetensors file; an old one stays whole until the new one is.

    Each layer's pattern lies under `patterns/NAME/ccol_indices` and `patterns/NAME/row_indices`, values to start from
    under `state/KEY`. Method, density, settings and shapes are JSON in the header's metadata, with the format's
    version and a SHA-256 over everything. 4 bytes an edge, and 4 more with float32 values.

    Raises:
        TypeError: settings that are no plain values.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, pattern in masks.items():
        tensors[f"patterns/{name}/ccol_indices"] = pattern.ccol_indices.cpu().contiguous()
        tensors[f"patterns/{name}/row_indices"] = pattern.row_indices.cpu().contiguous()
    for key, value in (masks.state or {}).items():
        tensors[f"state/{key}"] = value.detach().cpu().clone().contiguous()
    header = {
        "method": masks.method,
        "density": masks.density,
        "settings": masks.settings,
        "shapes": {name: list(shape) for name, shape in masks.shapes.items()},
        "has_state": masks.state is not None,
    }
    save_sealed(Path(path), FORMAT, VERSION, json.dumps(header), tensors)


def load_masks(path: str | os.PathLike[str]) -> Masks:
    """What `save_masks` wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, damaged, of another kind or newer, or whose indices are not valid; it
            names the layer and the index.
    """
    path = Path(path)
    text, tensors = load_sealed(path, FORMAT, VERSION, ValueError)
    try:
        header: dict[str, Any] = json.loads(text)
        shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
        patterns = {name: read_pattern(name, shape, tensors) for name, shape in shapes.items()}
        state = {key.removeprefix("state/"): tensor for key, tensor in tensors.items() if key.startswith("state/")}
        return Masks(
            patterns,
            shapes,
            method=header["method"],
            density=header["density"],
            settings=header["settings"],
            state=state if header["has_state"] else None,
        )
    except KeyError as error:
        raise ValueError(f"{path} is no whole mask file: it has no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def read_pattern(name: str, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> Pattern:
    ccol, row = (tensors[f"patterns/{name}/{part}"] for part in ("ccol_indices", "row_indices"))
    try:
        return Pattern.from_csc((shape[0], math.prod(shape[1:])), ccol, row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"layer {name!r}: {error}") from error
