"""`sparsekern compare`."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sparsekern.compare.grid import Grid, MethodName
from sparsekern.compare.run import run_grid
from sparsekern.training.progress import tell


@dataclass(frozen=True)
class Options:
    """Train all combinations of growth methods, densities, seeds and other options, and compare them.

    Every option of `sparsekern train` may be given besides: all runs share it, or differ in it where it is an --axis.
    Runs go on side by side in OUTPUT/runs. A comparison that was stopped or killed goes on with the same command; more
    values add runs. Figures go to results.csv, tables to results.md and a chart to accuracy.png.
    """

    output: Path = Path("runs/compare")
    """Folder of the comparison, new or begun."""
    methods: tuple[MethodName, ...] = ()
    """Growth methods, and "dense" for the dense network; without it all runs have --growth."""
    densities: tuple[float, ...] = ()
    """Densities; without it all runs have --density."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, over which the tables give mean and standard deviation."""
    axis: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="OPTION=VALUE,VALUE")] = ()
    """Another option of `sparsekern train` to compare by, such as lr=0.1,0.01 or label-smoothing=0,0.1; true and false
    for a switch."""
    jobs: int | None = None
    """Runs at a time; by default as many as the cores and the memory at hand allow."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything and list the runs, but start none."""


def compare(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit code: 0, 1 for what cannot be done or a run that failed, 128 + signal."""
    options, shared = tyro.cli(Options, prog="sparsekern compare", args=arguments, return_unknown_args=True)
    console = Console()
    try:
        grid = Grid.make(
            methods=options.methods,
            densities=options.densities,
            seeds=options.seeds,
            axes=options.axis,
            options=shared,
        )
        if options.dry_run:
            return list_runs(grid)
        code = run_grid(grid, options.output, options.jobs, console)
    except (ValueError, OSError) as error:
        print(f"sparsekern compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    if code > 128:
        command = shlex.join(["sparsekern", "compare", *arguments])
        tell(console, f"stopped; begun runs are saved. To go on:\n  {command}")
    return code


def list_runs(grid: Grid) -> int:
    for cell in grid.cells():
        grid.config(cell)
        print(f"{cell.name}: {shlex.join(['sparsekern', 'train', *grid.words(cell)])}")
    return 0
