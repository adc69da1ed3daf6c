"""accuracy.png: accuracy by density and by the time of a step. matplotlib is an extra: without it there is none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sparsekern.atomic import replace_file
from sparsekern.compare.page import groups
from sparsekern.compare.results import Result
from sparsekern.compare.spread import mean_and_deviation
from sparsekern.training.plots import PALE, finish, is_matplotlib_there, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1f5fa8", "#c2571a", "#3f8f5f", "#8a4fa3", "#b8902b", "#3b9aa5", "#a83f52", "#6b7683")
MARKS = "os^Dv<>P"


def draw_plot(path: Path, results: Sequence[Result], console: Console) -> None:
    """A line a method with standard deviations over seeds; the dense network, which has no density, is a level.

    Says so where matplotlib is missing.
    """
    if not is_matplotlib_there(console):
        return
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    grouped = groups(results)
    labels = list(dict.fromkeys(label for label, _ in grouped))
    for index, label in enumerate(labels):
        points = {density: group for (other, density), group in grouped.items() if other == label}
        color, mark = COLORS[index % len(COLORS)], MARKS[index // len(COLORS) % len(MARKS)]
        # A little to the side, so that deviations at one density do not hide each other.
        draw_line(left, label, points, color, mark, aside=1.025 ** (index - (len(labels) - 1) / 2))
        draw_times(right, label, points, color, mark)
    left.set(xlabel="density", ylabel="test accuracy [%]", xscale="log")
    right.set(xlabel="time of a training step [ms]")
    right.set_xlim(0, 1.1 * max(1000 * seconds_per_step(group) for group in grouped.values()))
    if shown := sorted({result.density for result in results if result.density is not None}):
        left.set_xlim(shown[0] / 1.25, shown[-1] * 1.25)
    left.set_xticks(shown, [f"{density:g}" for density in shown])
    left.set_xticks([], minor=True)
    for axes in (left, right):
        finish(axes)
        axes.get_legend().remove()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
    replace_file(path, lambda aside: figure.savefig(aside, dpi=150, format="png"))


def draw_line(
    axes: Axes, label: str, points: dict[float | None, list[Result]], color: str, mark: str, aside: float
) -> None:
    for density, group in points.items():
        if density is None:
            mean, deviation = mean_and_deviation(percentages(group))
            axes.axhline(mean, color=color, linestyle="--", linewidth=1.2, label=label)
            axes.axhspan(mean - (deviation or 0), mean + (deviation or 0), color=PALE, alpha=0.3, linewidth=0)
    if densities := [density for density in points if density is not None]:
        means, deviations = zip(*(mean_and_deviation(percentages(points[each])) for each in densities), strict=True)
        errors = [deviation or 0 for deviation in deviations]
        places = [aside * density for density in densities]
        axes.errorbar(places, means, errors, color=color, marker=mark, markersize=4.5, capsize=3, label=label)


def draw_times(axes: Axes, label: str, points: dict[float | None, list[Result]], color: str, mark: str) -> None:
    times = [1000 * seconds_per_step(group) for group in points.values()]
    means, deviations = zip(*(mean_and_deviation(percentages(group)) for group in points.values()), strict=True)
    errors = [deviation or 0 for deviation in deviations]
    axes.errorbar(times, means, errors, color=color, marker=mark, markersize=4.5, capsize=3, linestyle=":", label=label)


def seconds_per_step(group: Sequence[Result]) -> float:
    return statistics.mean(result.seconds_per_step for result in group)


def percentages(group: Sequence[Result]) -> list[float]:
    return [100 * result.test_accuracy for result in group]
