"""`sparsekern train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sparsekern.data import DataError
from sparsekern.recipes import load_recipe
from sparsekern.training.config import CHANGEABLE_ON_RESUME, TrainConfig
from sparsekern.training.folder import RunFolder
from sparsekern.training.lock import PATIENCE, let_go
from sparsekern.training.progress import tell
from sparsekern.training.ranks import TIMEOUT, FirstFailed, Processes, join, leave, processes
from sparsekern.training.run import Stopped, resume, run, start
from sparsekern.training.topology import load_masks_for, sparsity_of_mask
from sparsekern.training.trainer import Trainer

AUTO = Path("auto")


@dataclass(frozen=True)
class Arguments(TrainConfig):
    """Train a network whose weights, gradients and optimizer state exist only at its nonzeros.

    Without options: a ResNet on the digits data set at 5% density, its topology grown by guided stochastic
    exploration. Configuration, metrics, checkpoint and plots go to a new folder.
    """

    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run to go on with, bit for bit, under its own configuration. Or "auto": the same command begins the
    run in --output and, once that holds a checkpoint, goes on with it."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Start from a paper's configuration (`sparsekern recipes` lists them) or from a run's config.json; the other
    options change it."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = TIMEOUT
    """Under torchrun, how long a process waits for another before it ends with an error. A dead one is noticed at
    once."""


def train(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit code: 0 when finished or at --stop-after, 1 for what cannot be done.

    Saved and stopped by SIGTERM it is 75 (SAVED_ON_SIGTERM), by Ctrl-C 130. On the processes that torchrun starts, each
    trains on its part of every batch.
    """
    try:
        team = join(defaults_of(arguments).timeout)
    except ValueError as error:
        return fail(error)
    try:
        code = train_together(arguments, team)
    finally:
        let_go()
    if team.ranks is not None and code != 1:
        leave()
    return code


def train_together(arguments: Sequence[str], team: Processes) -> int:
    console = Console(quiet=not team.leads)
    try:
        trainer, folder = prepare(arguments)
    except FirstFailed:
        return 1
    except (ValueError, ImportError, OSError) as error:
        return fail(error)
    tell(console, f"run folder: {folder.path}")
    if trainer.tost is not None and not trainer.tost.over:
        tell(console, trainer.tost.report.brief)
    try:
        run(trainer, folder, console)
    except Stopped as stopped:
        tell(console, f"{stopped}\n  sparsekern train --resume {folder.path}")
        return stopped.code
    except FirstFailed:
        return 1
    except (FloatingPointError, DataError, OSError) as error:
        return fail(error)
    return 0


def prepare(arguments: Sequence[str]) -> tuple[Trainer, RunFolder]:
    """A new run, or the one to resume."""
    ahead = defaults_of(arguments)
    path, patience = ahead.resume, min(PATIENCE, ahead.timeout / 2)  # the other processes wait for the first one
    if path is None:
        return start(processes().first(lambda: new_config(arguments)))
    if path == AUTO:
        return start_or_resume(processes().first(lambda: new_config(arguments)), patience)
    if ahead.recipe is not None:
        raise ValueError(f"--resume goes on under the run's own configuration; it takes no --recipe {ahead.recipe}")
    folder = RunFolder(path)
    processes().first(lambda: folder.hold(patience))
    saved = folder.load_config()
    config = parse(arguments, saved)
    check_same(config, saved)
    if config.run.output != saved.run.output:
        raise ValueError(f"--resume goes on in {path}; it takes no --output")
    return resume(config, folder), folder


def start_or_resume(config: TrainConfig, patience: float) -> tuple[Trainer, RunFolder]:
    """What a job's command does each time it is started: the run in its --output, or a new one there.

    `patience` is how long it waits for another process that is at work in that folder, in seconds.
    """
    if config.run.output is None:
        raise ValueError("--resume auto needs --output, the folder where the run is or will be")
    folder = RunFolder(config.run.output)
    if not processes().first(lambda: folder.holds_run(patience)):
        return start(config)
    check_same(config, folder.load_config())
    return resume(config, folder), folder


def check_same(config: TrainConfig, saved: TrainConfig) -> None:
    if differences := config.differences(saved):
        option, (asked, kept) = next(iter(differences.items()))
        raise ValueError(
            f"--resume goes on under the run's own configuration, where {option} is {kept!r}, not {asked!r}; "
            f"only {', '.join(CHANGEABLE_ON_RESUME)} may change"
        )


def new_config(arguments: Sequence[str]) -> TrainConfig:
    """What a new run is made of. Ends the process, with a message, for arguments that cannot be parsed.

    Raises ValueError or OSError for a recipe or mask file that cannot be used, or not with the density asked for.
    """
    config = parse(arguments, new_defaults(defaults_of(arguments)))
    if config.sparsity.mask is not None and not config.sparsity.dense:
        load_masks_for(config.sparsity, config.sparsity.mask)
    return config


def defaults_of(arguments: Sequence[str]) -> argparse.Namespace:
    """--resume, --recipe, --mask and --timeout alone, ahead of the rest: the others' defaults come from the former."""
    parser = argparse.ArgumentParser("sparsekern train", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--mask", type=mask_path)
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    return parser.parse_known_args(arguments)[0]


def mask_path(text: str) -> Path | None:
    """The parser's "None" takes a recipe's mask file away."""
    return None if text == "None" else Path(text)


def new_defaults(ahead: argparse.Namespace) -> TrainConfig:
    """The defaults of a new run: the recipe's, and what a mask file says of sparsity."""
    config = TrainConfig() if ahead.recipe is None else load_recipe(ahead.recipe)
    return config if ahead.mask is None else replace(config, sparsity=sparsity_of_mask(ahead.mask))


def parse(arguments: Sequence[str], defaults: TrainConfig) -> TrainConfig:
    sections = [each.name for each in fields(TrainConfig)]
    parsed = tyro.cli(
        Arguments,
        prog="sparsekern train",
        args=arguments,
        default=Arguments(**{name: getattr(defaults, name) for name in sections}),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return TrainConfig(**{name: getattr(parsed, name) for name in sections})


def fail(error: Exception) -> int:
    print(f"sparsekern train: {error}", file=sys.stderr)
    return 1
