"""A comparison's files that are made of its finished runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from sparsekern.atomic import replace_file
from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Cell
from sparsekern.compare.page import accuracy_table, render
from sparsekern.compare.plots import draw_plot
from sparsekern.compare.results import read_results, write_csv
from sparsekern.training.progress import tell


class Report:
    """results.csv, results.md and accuracy.png, of those of `cells` that are finished by then."""

    def __init__(self, folder: CompareFolder, cells: Sequence[Cell], options: Sequence[str]) -> None:
        self.folder, self.cells, self.options = folder, cells, options

    def write(self) -> None:
        """The figures and the tables."""
        results = read_results(self.folder, self.cells)
        page = render(results, len(self.cells), self.options)
        if results:
            write_csv(self.folder.results, results)
        replace_file(self.folder.page, lambda aside: aside.write_text(page))

    def show(self, console: Console) -> None:
        """Draws the chart and prints the table of accuracies."""
        if results := read_results(self.folder, self.cells):
            draw_plot(self.folder.chart, results, console)
            tell(console, f"\n{accuracy_table(results)}\n")
        tell(console, f"written to {self.folder.page}")
