"""Accuracy on digits of ToST's ingredients, one by one and together, from training runs of the command line."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.options import Tost
from benchmarks.study import RECIPE, SEEDS, Study, finished_runs, percents
from sparsekern.compare import Grid, show_mean
from sparsekern.tables import page

STUDY = Study(
    "python -m benchmarks tost", "tost-digits", "--growth METHOD --density DENSITY --seed SEED [what a row adds]"
)
METHODS = {"static": "static random topology", "gse-grabo": "GSE, GraBo candidates"}
DENSITIES = (0.02, 0.01)
SMOOTHING = ("--label-smoothing", "0.1", "--label-smoothing-over", "others")
# name in the results: (name in the table, what a run adds to the plain recipe)
INGREDIENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("plain recipe", ()),
    "ghost-neurons": ("ghost soft neurons", ("--ghost-neurons",)),
    "ghost-skips": ("ghost skip connections, sparse", ("--ghost-skips",)),
    "free-skips": ("ghost skip connections, parameter-free", ("--ghost-skips", "--ghost-branch", "free")),
    "lrsi": ("re-scaled initialisation", ("--lrsi",)),
    "smoothing": ("label smoothing", SMOOTHING),
    "all": ("all four, skips sparse", ("--ghost-neurons", "--ghost-skips", "--lrsi", *SMOOTHING)),
}


def all_runs(ingredient: str) -> Grid:
    options = (*RECIPE, *INGREDIENTS[ingredient][1], "--threads", "1")
    return Grid.make(methods=tuple(METHODS), densities=DENSITIES, seeds=SEEDS, options=options)


def collect(folder: Path, processes: int) -> dict[str, Any]:
    runs = [
        {"ingredient": ingredient, **run}
        for ingredient in INGREDIENTS
        for run in finished_runs(all_runs(ingredient), folder / ingredient, processes)
    ]
    return STUDY.collect(runs, processes)


def differences(results: dict[str, Any], ingredient: str, method: str, density: float) -> list[float]:
    """Points more than the plain recipe, seed by seed: both begin with the same values and topology."""
    of = {
        name: {
            run["seed"]: 100 * run["test_accuracy"]
            for run in results["runs"]
            if (run["ingredient"], run["method"], run["density"]) == (name, method, density)
        }
        for name in (ingredient, "plain")
    }
    return [of[ingredient][seed] - plain for seed, plain in of["plain"].items()]


def helps(gains: list[float]) -> str:
    """What the seeds say together: a mean beyond twice its own standard error, or nothing."""
    if len(gains) < 2:
        return "one seed"
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    mean = statistics.mean(gains)
    return "yes" if mean > 2 * error else "hurts" if mean < -2 * error else "not seen"


def table(results: dict[str, Any], heading: str, cell: Any, ingredients: list[str]) -> str:
    columns = [(method, density) for method in METHODS for density in DENSITIES]
    headings = [f"{METHODS[method]}, {1 - density:.0%} sparse" for method, density in columns]
    rows = [
        f"| {INGREDIENTS[name][0]} | {' | '.join(cell(name, method, density) for method, density in columns)} |"
        for name in ingredients
    ]
    return "\n".join([f"| {heading} | {' | '.join(headings)} |", f"|---|{'---:|' * len(columns)}", *rows])


def render(results: dict[str, Any]) -> str:
    """docs/tost-digits.md, from the results alone."""
    runs = results["runs"]

    def accuracy(name: str, method: str, density: float) -> str:
        return show_mean(percents(runs, ingredient=name, method=method, density=density))

    def gain(name: str, method: str, density: float) -> str:
        gains = differences(results, name, method, density)
        return f"{statistics.mean(gains):+.2f}: {helps(gains)}"

    added = "\n".join(f"| {name} | `{' '.join(flags)}` |" for name, flags in INGREDIENTS.values() if flags)
    return page(
        [
            "# ToST's ingredients on digits",
            "## Accuracy",
            "Test accuracy in percent at the end of training, mean and standard deviation over "
            f"{len({run['seed'] for run in runs})} seeds, of a small ResNet with {runs[0]['dense_weights']:,} weights "
            "in its linear and convolutional layers when it is dense.",
            table(results, "", accuracy, list(INGREDIENTS)),
            "## Against the plain recipe",
            "What each adds, in points, seed by seed against the plain recipe; and whether that is more than chance: "
            'beyond twice the standard error of these differences "yes" or "hurts", else "not seen".',
            table(results, "", gain, [name for name in INGREDIENTS if name != "plain"]),
            "## The runs",
            STUDY.data(results["images"]) + " It was chosen without any of these ingredients, and nothing was tuned "
            "for them.",
            *STUDY.origin(results),
            "\n".join(["| row | adds |", "|---|---|", added]),
            "The figures of each run are in [tost-digits.json](tost-digits.json).",
        ]
    )


def run(options: Tost) -> None:
    results = collect(options.runs, options.processes)
    STUDY.write(results, render(results), options.output)
