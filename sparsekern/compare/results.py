"""The finished runs' figures, out of the runs' own files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sparsekern.atomic import replace_file
from sparsekern.compare.folder import CompareFolder
from sparsekern.compare.grid import DENSE, DENSITY, METHOD, SEED, Cell
from sparsekern.training.metrics import read_csv


@dataclass(frozen=True)
class Result:
    """A finished run."""

    run: str
    method: str
    """Growth method, or "dense"."""
    density: float | None
    """None of a dense run."""
    seed: int
    axes: dict[str, str]
    """Its values on the other axes."""
    test_accuracy: float
    """Share of right answers at the end of training."""
    best_test_accuracy: float
    """The highest of any epoch. It is chosen by the test images themselves, and so too high."""
    best_dev_test_accuracy: float | None
    """At the epoch that is best on the held-out images; None without any."""
    train_accuracy: float
    test_loss: float
    steps: int
    seconds: float
    """Spent in training steps."""
    seconds_per_step: float
    nnz: int
    """Weights that exist in linear and convolutional layers."""
    dense_weights: int
    """What the dense network has of them."""
    memory_bytes: int
    """What lives from step to step: weights, indices, gradients, optimizer state, other parameters and buffers."""
    dense_memory_bytes: int
    activation_bytes: int
    """What one batch's forward keeps for its backward."""
    threads: int
    torch: str

    @property
    def label(self) -> str:
        """What it shares with its other seeds and densities: "gse-grabo, lr=0.1"."""
        return ", ".join([self.method, *(f"{axis}={text}" for axis, text in self.axes.items())])


def read_results(folder: CompareFolder, cells: Iterable[Cell]) -> list[Result]:
    """Those of the finished cells, in their order."""
    return [read_result(folder, cell) for cell in cells if folder.is_finished(cell)]


def read_result(folder: CompareFolder, cell: Cell) -> Result:
    run = folder.run(cell)
    summary, config, epochs = run.load_summary(), run.load_config(), read_csv(run.metrics.path)
    is_dense = config.sparsity.is_dense
    return Result(
        run=cell.name,
        method=DENSE if is_dense else config.growth.name,
        density=None if is_dense else config.sparsity.density,
        seed=config.run.seed,
        axes={axis: text for axis, text in cell.values.items() if axis not in (METHOD, DENSITY, SEED)},
        best_dev_test_accuracy=None if summary.get("best_dev") is None else summary["best_dev"]["test_accuracy"],
        best_test_accuracy=max(float(row["test_accuracy"]) for row in epochs),
        seconds=sum(float(row["seconds"]) for row in epochs),
        memory_bytes=summary["memory"]["total"],
        dense_memory_bytes=summary["dense_memory"]["total"],
        activation_bytes=summary["activations"],
        **{key: summary[key] for key in ("test_accuracy", "train_accuracy", "test_loss", "steps")},
        **{key: summary[key] for key in ("seconds_per_step", "nnz", "dense_weights", "threads", "torch")},
    )


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """A row a run, with a column for each axis."""
    axes = list(dict.fromkeys(axis for result in results for axis in result.axes))
    columns: list[str] = []
    for each in fields(Result):
        columns += axes if each.name == "axes" else [each.name]
    rows: list[dict[str, Any]] = [asdict(result) | result.axes for result in results]

    def write(aside: Path) -> None:
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)
