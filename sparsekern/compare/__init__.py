"""Grids of training runs, behind `sparsekern compare`."""

from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import Cell, Grid
from sparsekern.compare.results import read_results
from sparsekern.compare.run import run_grid
from sparsekern.compare.spread import show_mean

__all__ = ["Cell", "CompareFolder", "Grid", "read_results", "run_grid", "show_mean"]
