"""Accuracy on digits of every growth method, from training runs of the command line."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks import machine
from benchmarks.options import ROOT, Digits
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


@dataclass(frozen=True)
class Run:
    """One training run of the table."""

    method: str
    density: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.density:g}-{self.seed}"

    def options(self) -> list[str]:
        method = ["--dense"] if self.method == "dense" else ["--growth", self.method, "--density", str(self.density)]
        return [*RECIPE, *method, "--seed", str(self.seed)]


def all_runs() -> list[Run]:
    sparse = [Run(method, density, seed) for seed in SEEDS for density in DENSITIES for method in METHODS]
    return [*(Run("dense", 1.0, seed) for seed in SEEDS), *sparse]


def train(run: Run, runs: Path) -> dict[str, Any]:
    """The run's summary, out of its folder if it is finished there."""
    folder = runs / run.name
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "sparsekern", "train"]
        if (folder / "checkpoint.safetensors").exists():
            command += ["--resume", str(folder)]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            command += [*run.options(), "--threads", "1", "--no-plots", "--output", str(folder)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return json.loads(summary.read_text())


def collect(runs: Path, processes: int) -> dict[str, Any]:
    """Every run's accuracy and sizes, with what they depend on."""
    jobs = all_runs()
    with ThreadPoolExecutor(processes) as pool:
        summaries = list(track(pool.map(lambda run: train(run, runs), jobs), "training", total=len(jobs)))
    digits = load_digits()
    return {
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "processes": processes,
        "images": {"train": len(digits.train_images), "test": len(digits.test_images)},
        "recipe": " ".join(["sparsekern train", *RECIPE]),
        "runs": [
            {
                "method": run.method,
                "density": run.density,
                "seed": run.seed,
                **{key: summary[key] for key in ("test_accuracy", "nnz", "dense_weights", "steps")},
            }
            for run, summary in zip(jobs, summaries, strict=True)
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
        cells = [cell(accuracies(results, method, density)) for density in densities]
        rows.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    paragraphs = [
        "# Accuracy on digits",
        "Test accuracy in percent at the end of training, mean and standard deviation over "
        f"{len({run['seed'] for run in runs})} seeds, of a small ResNet with {runs[0]['dense_weights']:,} weights in "
        f"its linear and convolutional layers. Dense: {cell(accuracies(results, 'dense', 1.0))}.",
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


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def run(options: Digits) -> None:
    results = collect(options.runs, options.processes)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "digits.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "digits.md").write_text(render(results))
    print(render(results))
