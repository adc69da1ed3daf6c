"""The topology that a run begins with: drawn at random, or from a mask file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from sparsekern.masks import Masks, load_masks
from sparsekern.models import ConvNet
from sparsekern.sparsify import sparsify, survey_layers
from sparsekern.training.config import SparsityConfig


def sparsity_of_mask(path: str | os.PathLike[str]) -> SparsityConfig:
    """The configuration that goes with a mask file. Raises FileNotFoundError or ValueError."""
    masks = load_masks(path)
    return SparsityConfig(density=masks.density, exclude=masks.exclude, mask=Path(path))


def build_topology(config: SparsityConfig, model: nn.Module, generator: torch.Generator, *, restoring: bool) -> None:
    """Makes a dense `model`, which may be on the meta device, sparse and real, in place.

    With `restoring`, the layers that a mask file has get a random topology in the place of its own, to be overwritten
    by a checkpoint's: the file may be gone.

    Raises:
        FileNotFoundError: no such mask file.
        ValueError: one that cannot be read, that has another density than `config` or other layers than
            `config.exclude` leaves to it, or that is of another model.
    """
    if config.mask is None or restoring:
        sparsify(model, config.density, config.distribution, config.exclude, generator=generator, device="cpu")
        has_values = False
    else:
        has_values = apply_masks(config, config.mask, model, generator).state is not None
    if isinstance(model, ConvNet) and not has_values:
        model.reset_convolutions()  # the excluded ones, which stay dense


def load_masks_for(config: SparsityConfig, path: Path) -> Masks:
    """The masks in a file, for `config`. Raises FileNotFoundError, or ValueError for another density too."""
    masks = load_masks(path)
    if masks.density != config.density:
        raise ValueError(f"density is {config.density:g}, but the masks in {path} have {masks.density:g}")
    return masks


def apply_masks(config: SparsityConfig, path: Path, model: nn.Module, generator: torch.Generator) -> Masks:
    masks = load_masks_for(config, path)
    sparse = [row for row, _ in survey_layers(model, config.exclude, plain=True) if row.reason is None]
    for row in sparse:
        if not any(name in masks for name in row.names):
            raise ValueError(f"the masks in {path} have no layer {row.name!r}: exclude it, for it to stay dense")
    try:
        if len(masks) > len(sparse):
            known = {name for row in sparse for name in row.names}
            extra = next((name for name in masks if name not in known), None)
            raise ValueError(f"the masks have a layer {extra!r}, which the model has not or exclude leaves out")
        masks.apply(model, generator=generator, device="cpu")
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from error
    return masks
