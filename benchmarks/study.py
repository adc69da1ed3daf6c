"""What the studies of accuracy on digits share: their runs, and the paragraphs that describe them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from sparsekern.compare import CompareFolder, Grid, read_results, run_grid
from sparsekern.data import load_digits

RECIPE = ("--model", "resnet", "--depth", "8", "--width", "16", "--epochs", "80", "--interval", "40")
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Study:
    """One page of accuracies, and how it came about."""

    command: str
    stem: str  # of the two files, in docs
    arguments: str  # of one run, behind RECIPE

    def collect(self, runs: list[dict[str, Any]], processes: int) -> dict[str, Any]:
        """The runs with what they depend on, for a JSON file."""
        digits = load_digits()
        return {
            "date": date.today().isoformat(),
            "machine": machine.describe(),
            "processes": processes,
            "images": {"train": len(digits.train_images), "test": len(digits.test_images)},
            "recipe": " ".join(["sparsekern train", *RECIPE]),
            "runs": runs,
        }

    def write(self, results: dict[str, Any], page: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.stem}.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / f"{self.stem}.md").write_text(page)
        print(page)

    def data(self, images: dict[str, int]) -> str:
        return (
            f"The data set is scikit-learn's `load_digits`, handwritten digits of 8x8 pixels: {images['train']} images "
            f"to train on and {images['test']} to test on, the same for every run. One test image is "
            f"{100 / images['test']:.2f} points, so that differences of a few tenths mean little. Training images are "
            "moved by up to one pixel each way. The recipe was chosen on another split of the data."
        )

    def origin(self, results: dict[str, Any]) -> list[str]:
        described = results["machine"]
        return [
            f"Made by `{self.command}` on {results['date']} at commit {described['commit']} with torch "
            f"{described['versions']['torch']} ({described['processor']}, {described['cores']} cores). Each run, on "
            "one thread, is",
            f"```text\n{results['recipe']} {self.arguments}\n```",
        ]


def finished_runs(grid: Grid, folder: Path, processes: int) -> list[dict[str, Any]]:
    """Every run's accuracy and sizes. Raises RuntimeError unless all runs are finished."""
    if run_grid(grid, folder, processes, Console()) != 0:
        raise RuntimeError(f"not all runs in {folder} are finished; the same command goes on")
    return [
        {
            "method": result.method,
            "density": 1.0 if result.density is None else result.density,
            "seed": result.seed,
            **{key: getattr(result, key) for key in ("test_accuracy", "nnz", "dense_weights", "steps")},
        }
        for result in read_results(CompareFolder(folder), grid.cells())
    ]


def percents(runs: Iterable[dict[str, Any]], **values: Any) -> list[float]:
    """Test accuracies in percent of the runs that have these values."""
    return [100 * run["test_accuracy"] for run in runs if all(run[key] == value for key, value in values.items())]
