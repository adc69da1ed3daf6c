"""Accuracy on digits of every growth method, from training runs of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.options import Digits
from benchmarks.study import RECIPE, SEEDS, Study, finished_runs, percents
from sparsekern.compare import Grid, show_mean
from sparsekern.tables import page

STUDY = Study("python -m benchmarks digits", "digits", "--growth METHOD --density DENSITY --seed SEED")
METHODS = ("static", "set", "rigl", "gse-uniform", "gse-grabo", "gse-graest")
DENSITIES = (0.05, 0.02)
NAMES = {
    "dense": "dense",
    "static": "static random topology",
    "set": "SET: random growth",
    "rigl": "RigL: growth by the dense gradient",
    "gse-uniform": "GSE, uniform candidates",
    "gse-grabo": "GSE, GraBo candidates",
    "gse-graest": "GSE, GraEst candidates",
}


def all_runs() -> Grid:
    return Grid.make(methods=("dense", *METHODS), densities=DENSITIES, seeds=SEEDS, options=(*RECIPE, "--threads", "1"))


def collect(runs: Path, processes: int) -> dict[str, Any]:
    return STUDY.collect(finished_runs(all_runs(), runs, processes), processes)


def accuracies(results: dict[str, Any], method: str, density: float) -> list[float]:
    """Test accuracies in percent, one a seed."""
    return percents(results["runs"], method=method, density=density)


def render(results: dict[str, Any]) -> str:
    """docs/digits.md, from the results alone."""
    runs = results["runs"]
    densities = sorted({run["density"] for run in runs} - {1.0}, reverse=True)
    edges = {run["density"]: run["nnz"] for run in runs}
    headings = [f"{1 - density:.0%} sparse: {edges[density]:,} weights" for density in densities]
    rows = []
    for method in METHODS:
        cells = [show_mean(accuracies(results, method, density)) for density in densities]
        rows.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    return page(
        [
            "# Accuracy on digits",
            "Test accuracy in percent at the end of training, mean and standard deviation over "
            f"{len({run['seed'] for run in runs})} seeds, of a small ResNet with {runs[0]['dense_weights']:,} weights "
            f"in its linear and convolutional layers. Dense: {show_mean(accuracies(results, 'dense', 1.0))}.",
            "\n".join([f"| | {' | '.join(headings)} |", f"|---|{'---:|' * len(densities)}", *rows]),
            f"{STUDY.data(results['images'])} RigL computes a dense gradient at each update; the others never make "
            "anything dense.",
            *STUDY.origin(results),
            "with `--dense` for the dense network. The figures of each run are in [digits.json](digits.json).",
        ]
    )


def run(options: Digits) -> None:
    results = collect(options.runs, options.processes)
    STUDY.write(results, render(results), options.output)
