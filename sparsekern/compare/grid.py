"""What is compared: axes, and the training runs that they span."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote

from sparsekern.commands.train import new_config
from sparsekern.training.config import GrowthName, TrainConfig

DENSE: Literal["dense"] = "dense"
MethodName = Literal["dense", GrowthName]

METHOD, DENSITY, SEED, MASK = "method", "density", "seed", "mask"
# Option of `sparsekern train`: (the axis that is made of it, how that is given).
OWN_AXES = {
    "growth": (METHOD, "--methods"),
    "dense": (METHOD, "--methods"),
    "density": (DENSITY, "--densities"),
    "seed": (SEED, "--seeds"),
}
RESERVED = {
    "output": "each run has its own folder",
    "resume": "the same command goes on with a comparison",
    "stop-after": "Ctrl-C stops a comparison",
    "twin": "the method 'dense' trains the dense network",
}
LONGEST_NAME = 200  # bytes; file systems take 255, and a log has a suffix


@dataclass(frozen=True)
class Cell:
    """One run: its value on each axis, by the axis's name. A dense run has none of density and of mask files."""

    values: dict[str, str]

    @property
    def name(self) -> str:
        """METHOD-DENSITY-OPTION=VALUE-...-seed=SEED, fit to be a file's name and different for different cells."""
        bare = (METHOD, DENSITY)
        return "-".join(
            text if axis in bare else f"{axis}={quote(text, safe=',+')}" for axis, text in self.values.items()
        )

    @property
    def words(self) -> list[str]:
        """Its part of the command line of `sparsekern train`."""
        return [word for axis, text in self.values.items() for word in option_words(axis, text)]


def option_words(axis: str, text: str) -> list[str]:
    """`--axis text`; true and false are switches, and blanks separate the values of an option that takes several."""
    if axis == METHOD:
        return ["--dense"] if text == DENSE else ["--growth", text]
    if text in ("true", "false"):
        return [f"--{axis}" if text == "true" else f"--no-{axis}"]
    return [f"--{axis}", *shlex.split(text)]


@dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values, over the options of `sparsekern train` that the runs share.

    A dense run does not depend on density and mask files: there is one for each combination of the rest.
    """

    axes: dict[str, tuple[str, ...]]
    options: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        *,
        methods: Sequence[str] = (),
        densities: Sequence[float] = (),
        seeds: Sequence[int] = (0, 1, 2),
        axes: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> Grid:
        """A grid from an axis of growth methods (and "dense"), of densities and of seeds, each left out where empty.

        Args:
            axes: more of them, as "option=value,value" of any option of `sparsekern train`.
            options: words of the command line of `sparsekern train` that all runs share.

        Raises ValueError for a value that is unknown or occurs twice, and for an option that is not free.
        """
        for method in methods:
            if method not in get_args(MethodName):
                raise ValueError(f"methods must be among {', '.join(get_args(MethodName))}, got {method!r}")
        for density in densities:
            if not 0 < density < 1:
                raise ValueError(
                    f"densities must be above 0 and below 1, got {density!r}; 'dense' among the methods trains at 1"
                )
        more = [parse_axis(text) for text in axes]
        named = [
            (METHOD, tuple(methods)),
            (DENSITY, tuple(str(density) for density in densities)),
            *more,
            (SEED, tuple(str(seed) for seed in seeds)),
        ]
        check_values(named)
        grid = cls({axis: texts for axis, texts in named if texts}, tuple(options))
        if not grid.axes:
            raise ValueError("nothing to compare by: give methods, densities, seeds or an axis")
        grid.check_options()
        return grid

    def check_options(self) -> None:
        """Raises ValueError for an option of all runs that is an axis as well or that a comparison sets itself."""
        taken = {axis: f"--axis {axis}" for axis in self.axes}
        taken |= {option: flag for option, (axis, flag) in OWN_AXES.items() if axis in self.axes}
        names = {word: option_name(word) for word in self.options if word.startswith("--")}
        for name in (*self.axes, *names.values()):
            if name in RESERVED:
                raise ValueError(f"sparsekern compare takes no --{name}: {RESERVED[name]}")
        for word, name in names.items():
            if (axis := name.removeprefix("no-")) in taken:
                raise ValueError(f"option {word} is an axis as well, by {taken[axis]}")

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an unfinished comparison has something of everything.

        Raises ValueError for a name that is too long for a file's.
        """
        outer = [axis for axis in self.axes if axis not in (METHOD, DENSITY)]
        order = [*reversed(outer), *(axis for axis in (DENSITY, METHOD) if axis in self.axes)]
        found: dict[str, Cell] = {}
        for texts in itertools.product(*(self.axes[axis] for axis in order)):
            chosen = dict(zip(order, texts, strict=True))
            is_dense = chosen.get(METHOD) == DENSE
            cell = Cell({axis: chosen[axis] for axis in self.axes if not (is_dense and axis in (DENSITY, MASK))})
            if len(cell.name.encode()) > LONGEST_NAME:
                raise ValueError(f"the run {cell.name} has a name of more than {LONGEST_NAME} bytes")
            found[cell.name] = cell
        return list(found.values())

    def words(self, cell: Cell) -> list[str]:
        """The command line of a cell's run, but for its folder and threads. Runs draw no plots unless asked to."""
        return ["--no-plots", *self.options, *cell.words]

    def config(self, cell: Cell) -> TrainConfig:
        """Raises ValueError with the run's name where `sparsekern train` would not take its options."""
        try:
            return new_config(self.words(cell))
        except SystemExit as stop:
            # The parser has said why.
            raise ValueError(f"run {cell.name} cannot be made: {shlex.join(self.words(cell))}") from stop
        except (ValueError, OSError) as error:
            raise ValueError(f"run {cell.name} cannot be made: {error}") from error


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """ "option=value,value" as (option, values)."""
    name, equals, listed = text.partition("=")
    name = option_name(name)
    values = tuple(value.strip() for value in listed.split(","))
    if not (name and equals and all(values)):
        raise ValueError(f"axis must be option=value,value such as lr=0.1,0.01, got {text!r}")
    if name in OWN_AXES:
        raise ValueError(f"axis {name} is given by {OWN_AXES[name][1]}")
    return name, values


def option_name(word: str) -> str:
    """ "--batch_size=32" as "batch-size"."""
    return word.removeprefix("--").partition("=")[0].replace("_", "-")


def check_values(axes: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    names = [axis for axis, _ in axes]
    for axis, texts in axes:
        if names.count(axis) > 1:
            raise ValueError(f"axis {axis} is given twice")
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"axis {axis} has the value {text} twice")
