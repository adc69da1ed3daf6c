"""`sparsekern info`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import tyro

from sparsekern import crossover
from sparsekern.counting import ModelCount, count_model
from sparsekern.models import make_model
from sparsekern.sparsify import sparsify
from sparsekern.training.config import DistributionName, ModelConfig, check_range

SMALL = ("mlp", "resnet", "vit", "simple-vit")  # made for small images


@dataclass(frozen=True)
class Arguments:
    """Count the parameters, FLOPs and activations of each layer of a network, sparse and dense, without training it.

    FLOPs are of one forward pass of one image: two for each weight that exists and each place where it is used.
    Nothing is computed and no weight is held: networks of any size take seconds. Below the table are the layers for
    which a dense one measured faster at their density, by machine; docs/crossover.md has the measurements.
    """

    model: ModelConfig = field(default_factory=lambda: ModelConfig("resnet50"))
    density: float = 0.1
    """Share of the weights that exist, over all sparse layers together; 1 for the dense network."""
    distribution: DistributionName = "erk"
    """How the density is spread over the layers."""
    exclude: tuple[str, ...] = ()
    """Name patterns of layers that stay dense, such as stem."""
    channels: int = 3
    """Of the images."""
    size: int | None = None
    """Of the images [pixels]; by default 224, and 32 for mlp, resnet, vit and simple-vit."""
    classes: int | None = None
    """By default 1000, and 10 for images of up to 64 pixels."""
    markdown: bool = False
    """Print a Markdown table."""

    def __post_init__(self) -> None:
        for name in ("channels", "size", "classes"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)


def count(options: Arguments) -> ModelCount:
    """Raises ValueError for a model, density or pattern that there is not."""
    size = (32 if options.model.name in SMALL else 224) if options.size is None else options.size
    classes = (10 if size <= 64 else 1000) if options.classes is None else options.classes
    with torch.device("meta"):
        model = make_model(options.model.name, options.channels, size, classes, **options.model.options())
    if options.density != 1:
        sparsify(model, options.density, options.distribution, options.exclude)
    return count_model(model, (options.channels, size, size))


def info(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit code: 0, or 1 for what cannot be counted."""
    options = tyro.cli(Arguments, prog="sparsekern info", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    try:
        counted = count(options)
    except ValueError as error:
        print(f"sparsekern info: {error}", file=sys.stderr)
        return 1
    print(counted.markdown() if options.markdown else counted)
    if lines := crossover.notes(counted.rows):
        print("", *lines, sep="\n")
    return 0
