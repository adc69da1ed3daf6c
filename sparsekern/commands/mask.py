"""`sparsekern mask`."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from sparsekern.masks import Masks, grasp, lottery_ticket, magnitude, random_mask, save_masks, snip, synflow
from sparsekern.tost import smoothed_cross_entropy
from sparsekern.training.config import (
    DataConfig,
    DistributionName,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SparsityConfig,
    TrainConfig,
    check_choice,
    check_range,
)
from sparsekern.training.progress import tell
from sparsekern.training.rounds import TicketRounds
from sparsekern.training.run import build
from sparsekern.training.trainer import Trainer

MethodName = Literal["random", "magnitude", "snip", "grasp", "synflow", "lottery"]


@dataclass(frozen=True)
class MaskConfig:
    method: MethodName = "snip"
    """What finds the edges."""
    density: float = 0.05
    """Share of the weights that become edges, over all sparse layers together."""
    distribution: DistributionName = "erk"
    """random: how the density is spread over the layers."""
    exclude: tuple[str, ...] = ()
    """Name patterns of layers that stay dense, such as 'head*'."""
    batches: int = 4
    """snip, grasp: training batches that the gradient is taken of."""
    temperature: float = 200.0
    """grasp: by which the network's outputs are divided."""
    rounds: int | None = None
    """synflow, lottery: prunings on the way to the density; by default 100, and as many as --share needs."""
    share: float = 0.2
    """lottery: at most this share of the survivors goes in a round."""
    rewind: int = 0
    """lottery: steps of training after which stand the values that rounds go back to; 0 for the initial ones."""
    keep_weights: bool = False
    """Save the initial values too, for `train` to begin with. A lottery ticket always has its own."""

    def __post_init__(self) -> None:
        check_choice("method", self.method, MethodName)
        check_choice("distribution", self.distribution, DistributionName)
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density!r}")
        check_range("batches", self.batches, 1)
        check_range("rewind", self.rewind, 0)
        if self.rounds is not None:
            check_range("rounds", self.rounds, 1)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature!r}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {self.share!r}")


@dataclass(frozen=True)
class MaskRunConfig:
    epochs: int = 60
    """lottery: passes over the training images, each round."""
    seed: int = 0
    """Seed of initial weights, random edges and order of the data: the network is that of `train` with this seed."""
    device: str = "cpu"
    """Torch device."""
    threads: int | None = None
    """CPU threads; by default torch's own choice."""


@dataclass(frozen=True)
class Arguments:
    """Find the topology that a network begins with, and write it to a file for `sparsekern train --mask FILE`.

    The network is dense while it is searched, for lottery tickets in the first round of training alone.
    """

    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Mask file to write (safetensors); there must be none yet."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: MaskRunConfig = field(default_factory=MaskRunConfig)

    @property
    def training(self) -> TrainConfig:
        """The dense run with this network, data and seed."""
        sparsity = SparsityConfig(dense=True, density=self.mask.density, exclude=self.mask.exclude)
        run = RunConfig(self.run.epochs, self.run.seed, self.run.device, threads=self.run.threads)
        return TrainConfig(self.model, self.data, sparsity, optimizer=self.optimizer, run=run)


def mask(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit code: 0, or 1 for what cannot be done."""
    console = Console()
    config = (tyro.conf.OmitArgPrefixes,)
    try:
        asked = tyro.cli(Arguments, prog="sparsekern mask", args=arguments, config=config)
        write(asked, console)
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"sparsekern mask: {error}", file=sys.stderr)
        return 1
    return 0


def write(asked: Arguments, console: Console) -> None:
    """Finds the masks, saves them and prints the layers' densities."""
    if asked.output.exists():
        raise FileExistsError(f"output {asked.output} exists: choose another")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    masks = find(asked, build(asked.training), console)
    save_masks(asked.output, masks)
    console.print(make_table(masks))
    tell(console, train_command(asked))


def train_command(asked: Arguments) -> str:
    """The command that trains the same network on the same data with the masks."""
    words = ["sparsekern", "train", "--mask", str(asked.output)]
    if asked.model.name != ModelConfig().name:
        words += ["--model", asked.model.name]
    for option, value in asked.model.options().items():
        words += [f"--{option}", str(value)]
    if asked.data.name != DataConfig().name:
        words += ["--data", asked.data.name, "--data-root", str(asked.data.root)]
    return shlex.join(words)


def find(asked: Arguments, trainer: Trainer, console: Console) -> Masks:
    options, model = asked.mask, trainer.model
    density, exclude = options.density, options.exclude
    optimizer = asked.optimizer
    loss = partial(smoothed_cross_entropy, smoothing=optimizer.label_smoothing, over=optimizer.label_smoothing_over)
    batches = itertools.islice(trainer.loader, options.batches)
    if options.method == "random":
        generator = torch.Generator().manual_seed(asked.run.seed)
        masks = random_mask(model, density, options.distribution, exclude, generator=generator)
    elif options.method == "magnitude":
        masks = magnitude(model, density, exclude)
    elif options.method == "snip":
        masks = snip(model, density, batches, loss, exclude)
    elif options.method == "grasp":
        masks = grasp(model, density, batches, loss, exclude, temperature=options.temperature)
    elif options.method == "synflow":
        image = torch.empty(1, trainer.data.channels, trainer.data.size, trainer.data.size, device=trainer.device)
        masks = synflow(model, density, image, exclude, rounds=options.rounds or 100)
    else:
        rounds = TicketRounds(asked.training, options.rewind, console)
        masks = lottery_ticket(
            model,
            density,
            rounds.train,
            exclude,
            warm_up=rounds.warm_up if options.rewind else None,
            share=options.share,
            rounds=options.rounds,
        )
    if options.method == "lottery":
        masks.settings.update(epochs=asked.run.epochs, rewind=options.rewind)
    masks.settings.update(model=asked.model.name, data=asked.data.name, seed=asked.run.seed)
    return masks.with_values(model) if options.keep_weights and masks.state is None else masks


def make_table(masks: Masks) -> Table:
    table = Table(title=f"{masks.method}, density {masks.density:g}")
    for heading in ("layer", "shape", "density", "edges"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for name, pattern in masks.items():
        shape = " x ".join(map(str, masks.shapes[name]))
        table.add_row(name, shape, f"{pattern.density:.4f}", f"{pattern.nnz:,}")
    table.add_section()
    table.add_row("all", f"{masks.size:,}", f"{masks.nnz / masks.size:.4f}", f"{masks.nnz:,}")
    return table
