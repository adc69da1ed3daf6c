"""Accuracy on digits of every growth method, from training runs of the command line."""

from __future__ import annotations

import json
import textwrap
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.options import Digits
from sparsekern.compare import CompareFolder, Grid, read_results, run_grid, show_mean
from sparsekern.data import load_digits

COMMAND = "python -m benchmarks digits"
RECIPE = ("--model", "resnet", "--depth", "8", "--width", "16", "--epochs", "80", "--interval", "40")
METHODS = ("static", "set", "rigl", "gse-uniform", "gse-grabo", "gse-graest")
DENSITIES = (0.05, 0.02)
SEEDS = (0, 1, 2, 3, 4)
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
    """Every run's accuracy and sizes, with what they depend on. Raises RuntimeError unless all runs are finished."""
    grid = all_runs()
    if run_grid(grid, runs, processes, Console()) != 0:
        raise RuntimeError(f"not all runs in {runs} are finished; the same command goes on")
    digits = load_digits()
    return {
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "processes": processes,
        "images": {"train": len(digits.train_images), "test": len(digits.test_images)},
        "recipe": " ".join(["sparsekern train", *RECIPE]),
        "runs": [
            {
                "method": result.method,
                "density": 1.0 if result.density is None else result.density,
                "seed": result.seed,
                **{key: getattr(result, key) for key in ("test_accuracy", "nnz", "dense_weights", "steps")},
            }
            for result in read_results(CompareFolder(runs), grid.cells())
        ],
    }


def accuracies(results: dict[str, Any], method: str, density: float) -> list[float]:
    """Test accuracies in percent, one a seed."""
    return [
        100 * run["test_accuracy"] for run in results["runs"] if run["method"] == method and run["density"] == density
    ]


def render(results: dict[str, Any]) -> str:
    """docs/digits.md, from the results alone."""
    runs, images, described = results["runs"], results["images"], results["machine"]
    densities = sorted({run["density"] for run in runs} - {1.0}, reverse=True)
    edges = {run["density"]: run["nnz"] for run in runs}
    headings = [f"{1 - density:.0%} sparse: {edges[density]:,} weights" for density in densities]
    rows = []
    for method in METHODS:
        cells = [show_mean(accuracies(results, method, density)) for density in densities]
        rows.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    paragraphs = [
        "# Accuracy on digits",
        "Test accuracy in percent at the end of training, mean and standard deviation over "
        f"{len({run['seed'] for run in runs})} seeds, of a small ResNet with {runs[0]['dense_weights']:,} weights in "
        f"its linear and convolutional layers. Dense: {show_mean(accuracies(results, 'dense', 1.0))}.",
        "\n".join([f"| | {' | '.join(headings)} |", f"|---|{'---:|' * len(densities)}", *rows]),
        f"The data set is scikit-learn's `load_digits`, handwritten digits of 8x8 pixels: {images['train']} images to "
        f"train on and {images['test']} to test on, the same for every run. One test image is "
        f"{100 / images['test']:.2f} points, so that differences of a few tenths mean little. Training images are "
        "moved by up to one pixel each way. The recipe was chosen on another split of the data. RigL computes a dense "
        "gradient at each update; the others never make anything dense.",
        f"Made by `{COMMAND}` on {results['date']} at commit {described['commit']} with torch "
        f"{described['versions']['torch']} ({described['processor']}, {described['cores']} cores). Each run, on one "
        "thread, is",
        f"```\n{results['recipe']} --growth METHOD --density DENSITY --seed SEED\n```",
        "with `--dense` for the dense network. The figures of each run are in [digits.json](digits.json).",
    ]
    wrapped = [text if text[0] in "#|`" else textwrap.fill(text, 118) for text in paragraphs]
    return "\n\n".join(wrapped) + "\n"


def run(options: Digits) -> None:
    results = collect(options.runs, options.processes)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "digits.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "digits.md").write_text(render(results))
    print(render(results))
