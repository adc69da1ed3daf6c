"""How many edges each row and column of the sparse layers has, out of a run's checkpoint."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import torch

from sparsekern.training.checkpoint import DamagedCheckpoint, load_checkpoint
from sparsekern.training.folder import RunFolder

Bin = tuple[int, int, int]  # first and last number of edges, and how many rows or columns have as many
MOST_BINS = 24


@dataclass(frozen=True)
class Degrees:
    """A layer's: {number of edges: rows (columns) that have as many}."""

    fan_in: Counter[int]
    fan_out: Counter[int]

    @property
    def rows(self) -> int:
        return self.fan_in.total()

    @property
    def columns(self) -> int:
        return self.fan_out.total()

    @property
    def nnz(self) -> int:
        return sum(edges * rows for edges, rows in self.fan_in.items())


def read_degrees(folder: RunFolder) -> tuple[int, dict[str, Degrees], str]:
    """(the checkpoint's step, each layer that its growth knows, what is the matter with a newer checkpoint).

    Raises FileNotFoundError or CheckpointError.
    """
    problem = ""
    try:
        state = load_checkpoint(folder.checkpoint)
    except (FileNotFoundError, DamagedCheckpoint) as error:
        if not folder.checkpoints.earlier():
            raise
        problem = str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that says what a resumed run would do
            state = folder.checkpoints.find()[1]
    model = state["model"]
    found = {}
    for name, (rows, *_) in ((state.get("growth") or {}).get("layers") or {}).items():
        fan_in = torch.bincount(model[f"{name}.row_indices"].long(), minlength=rows)
        fan_out = model[f"{name}.ccol_indices"].long().diff()
        found[name] = Degrees(Counter(fan_in.tolist()), Counter(fan_out.tolist()))
    return state["progress"]["step"], found, problem


def binned(counts: Counter[int]) -> list[Bin]:
    """A bin a number of edges, or at most `MOST_BINS` wider ones, from the least to the most."""
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // MOST_BINS)
    return [
        (first, first + width - 1, sum(counts[edges] for edges in range(first, first + width)))
        for first in range(low, high + 1, width)
    ]


def spread(counts: Counter[int]) -> tuple[int, float, int]:
    """(least, lower median, most)."""
    reached, half = 0, (counts.total() + 1) // 2
    for edges in sorted(counts):
        reached += counts[edges]
        if reached >= half:
            return min(counts), edges, max(counts)
    return 0, 0, 0
