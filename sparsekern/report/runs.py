"""What a report is made of: the files of runs, read as they are, of unfinished runs and of older versions too."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsekern.report.degrees import Degrees, read_degrees
from sparsekern.training.config import TrainConfig
from sparsekern.training.folder import RunFolder

# A row of a CSV file: numbers where a column has them, None where a field is empty or the column is missing.
Row = dict[str, Any]
WORDS = frozenset({"layer", "skipped", "what"})


@dataclass
class Run:
    """One run.

    Attributes:
        name: what it is called on the page.
        path: its folder.
        config: under which it was begun.
        epochs: rows of metrics.csv; updates of topology.csv; layers of layers.csv; resources of resources.csv.
        summary: summary.json, None for a run that is not finished.
        degrees: edges of the rows and columns of each sparse layer, from the checkpoint, which is of `saved_step`.
        problems: what is missing, in words.
    """

    name: str
    path: Path
    config: TrainConfig
    epochs: list[Row] = field(default_factory=list)
    updates: list[Row] = field(default_factory=list)
    layers: list[Row] = field(default_factory=list)
    resources: list[Row] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    degrees: dict[str, Degrees] = field(default_factory=dict)
    saved_step: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_dense(self) -> bool:
        return self.config.sparsity.is_dense

    @property
    def method(self) -> str:
        return "dense" if self.is_dense else self.config.growth.name

    @property
    def state(self) -> str:
        done, planned = len(self.epochs), self.config.run.epochs
        if self.summary is not None:
            return f"finished, {done} epoch{'s' * (done != 1)}"
        if not done:
            return f"unfinished, in the first of {planned} epochs"
        return f"unfinished, {done} of {planned} epochs"

    def column(self, name: str) -> list[float | None]:
        """Of metrics.csv, a value an epoch."""
        return [row.get(name) for row in self.epochs]

    def last(self, name: str) -> float | None:
        return self.column(name)[-1] if self.epochs else None


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs' folders: those named, those inside a comparison's folder, and a run's dense twin after it.

    Raises FileNotFoundError for what is no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inner = [path]
        if not (path / "config.json").is_file():
            inner = sorted(each.parent for each in path.glob("runs/*/config.json"))
        if not inner:
            raise FileNotFoundError(f"no run at {path}: it has no config.json, nor runs with one in {path / 'runs'}")
        for each in inner:
            found[each] = None
            if (each / "dense" / "config.json").is_file():
                found[each / "dense"] = None
    return list(found)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """All that `find_runs` finds. Raises FileNotFoundError, or ValueError for files that cannot be read."""
    folders = find_runs(paths)
    return [read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def read_run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    run = Run(name, path, folder.load_config())
    run.epochs, run.updates, run.layers, run.resources = (
        read_rows(log.path) for log in (folder.metrics, folder.topology, folder.layers, folder.resources)
    )
    if folder.summary.is_file():
        try:
            run.summary = folder.load_summary()
        except ValueError as error:
            raise ValueError(f"{folder.summary} cannot be read: {error}") from error
    else:
        run.problems.append("It is not finished: sizes, memory and time of the whole are measured at the end.")
    if not run.epochs:
        run.problems.append("It has not tested an epoch yet: there are no curves.")
    if run.epochs and not run.layers:
        run.problems.append("It has no layers.csv, which later versions write: no gradient norms of single layers.")
    if run.updates and "survived" not in run.updates[-1]:
        run.problems.append("Its topology.csv is of an older version, without survival, fan-in, fan-out and norms.")
    if not run.is_dense:
        if not run.updates:
            run.problems.append("No update has changed its topology.")
        try:
            run.saved_step, run.degrees, problem = read_degrees(folder)
            if problem:
                run.problems.append(f"The histograms are of an earlier checkpoint: {problem}")
        except (ValueError, OSError, KeyError) as error:
            run.problems.append(f"No histograms of fan-in and fan-out: {error}")
    return run


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart; a dense twin's has that of its run before it."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    names = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length - (each[-1] == "dense") :]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; none where there is no file, and not the last one if a kill cut it short.

    Raises ValueError, naming file and row, for what is no number where one has to be.
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
    return [parse(row, f"{path}, row {number}") for number, row in enumerate(whole, start=1)]


def parse(row: dict[str, str], place: str) -> Row:
    parsed: Row = {}
    for name, text in row.items():
        if name in WORDS:
            parsed[name] = text
            continue
        try:
            parsed[name] = float(text) if text else None
        except ValueError:
            raise ValueError(f"{place}: {name} is {text!r}; expected a number") from None
    if parsed.get("step") is None:
        raise ValueError(f"{place}: it has no step")
    return parsed


def by_layer(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """A layer's rows, in the order of the file."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["layer"], []).append(row)
    return found


def by_step(rows: Iterable[Row]) -> dict[float, list[Row]]:
    found: dict[float, list[Row]] = {}
    for row in rows:
        found.setdefault(row["step"], []).append(row)
    return found
