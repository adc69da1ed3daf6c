"""A comparison's folder: grid.json, the runs and their logs, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

from sparsekern.atomic import remove_unfinished
from sparsekern.compare.grid import Cell, Grid
from sparsekern.training.folder import RunFolder, write_json


class CompareFolder:
    """The files of one comparison."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.grid = path / "grid.json"
        self.results = path / "results.csv"
        self.page = path / "results.md"
        self.chart = path / "accuracy.png"

    def run(self, cell: Cell) -> RunFolder:
        return RunFolder(self.path / "runs" / cell.name)

    def log(self, cell: Cell) -> Path:
        return self.path / "logs" / f"{cell.name}.log"

    def is_finished(self, cell: Cell) -> bool:
        return self.run(cell).summary.exists()

    def create(self) -> None:
        """Raises FileExistsError rather than write among files that are no comparison's."""
        is_other = self.path.exists() and not self.grid.exists()
        if is_other and (not self.path.is_dir() or any(each.name != ".lock" for each in self.path.iterdir())):
            raise FileExistsError(f"output {self.path} exists and is no comparison's folder")
        self.path.mkdir(parents=True, exist_ok=True)

    def load_grid(self) -> tuple[Grid, list[Cell]] | None:
        """(axes and options of the last comparison here, all runs that were ever asked for), or None for a new folder.

        Raises ValueError for a grid.json that cannot be read.
        """
        if not self.grid.exists():
            return None
        try:
            saved = json.loads(self.grid.read_text())
            axes = {axis: tuple(values) for axis, values in saved["axes"].items()}
            return Grid(axes, tuple(saved["options"])), [Cell(dict(values)) for values in saved["runs"]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.grid} cannot be read: {error!r}") from error

    def add(self, grid: Grid) -> list[Cell]:
        """Adds a grid's runs to the folder's and returns all of them.

        Raises ValueError for a grid of other axes, and for options under which the folder's runs would be others.
        """
        cells = grid.cells()
        self.check_begun(grid, cells)
        loaded = self.load_grid()
        if loaded is not None:
            saved, old = loaded
            self.check_same(grid, saved)
            cells = [*old, *(cell for cell in cells if cell not in old)]
        content = {"axes": grid.axes, "options": grid.options, "runs": [cell.values for cell in cells]}
        remove_unfinished(self.path)
        write_json(self.grid, content)
        for name in ("runs", "logs"):
            (self.path / name).mkdir(exist_ok=True)
        return cells

    def check_same(self, grid: Grid, saved: Grid) -> None:
        if grid.axes.keys() != saved.axes.keys():
            raise ValueError(
                f"{self.path} compares by {', '.join(saved.axes)}, not by {', '.join(grid.axes)}; "
                "other axes need an output of their own"
            )
        cell = grid.cells()[0]
        before = Grid(grid.axes, saved.options).config(cell)
        for option, (asked, kept) in grid.config(cell).differences(before).items():
            raise ValueError(
                f"the runs in {self.path} have {option} {kept!r}, not {asked!r}; other options need an output of "
                "their own"
            )

    def check_begun(self, grid: Grid, cells: list[Cell]) -> None:
        for cell in cells:
            run = self.run(cell)
            if run.config.exists():
                for option, (asked, kept) in grid.config(cell).differences(run.load_config()).items():
                    raise ValueError(f"{run.path} was begun with {option} {kept!r}, not {asked!r}")
