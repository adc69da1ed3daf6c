"""`sparsekern report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sparsekern.atomic import replace_file
from sparsekern.report.page import render
from sparsekern.report.runs import read_runs
from sparsekern.training.progress import tell


@dataclass(frozen=True)
class Options:
    """Make one self-contained HTML page of a run, finished or not, or of several to compare.

    A run that has a dense twin beside it is compared with that. The folder of a `sparsekern compare` stands for all
    its runs.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Folders of runs, or of comparisons."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write, in the place of one that is there; by default report.html in the folder, of several in the current
    one."""


def report(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit code: 0, or 1 for what cannot be read or written."""
    options = tyro.cli(Options, prog="sparsekern report", args=arguments)
    try:
        output = write_report(options.runs, options.output)
    except (ValueError, OSError) as error:
        print(f"sparsekern report: {error}", file=sys.stderr)
        return 1
    tell(Console(), f"written to {output}")
    return 0


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page whole or not at all, and returns where it is.

    Raises FileNotFoundError for what is no run, ValueError for no runs at all and for files that cannot be read.
    """
    if not paths:
        raise ValueError("no run is named: sparsekern report RUN ...")
    page = render(read_runs(paths))
    if output is None:
        output = (paths[0] if len(paths) == 1 else Path()) / "report.html"
    if output.is_dir():
        raise IsADirectoryError(f"output {output} is a folder: name a file in it")
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, lambda aside: aside.write_text(page, encoding="utf-8"))
    return output
