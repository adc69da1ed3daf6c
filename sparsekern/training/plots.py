"""A run's plots, drawn from its files. matplotlib is an extra: without it there are none."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sparsekern.training.folder import RunFolder
from sparsekern.training.metrics import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, TEST, PALE, TEXT = "#c2571a", "#1f5fa8", "#aab4c0", "#2b3138"


def draw_plots(folder: RunFolder, console: Console) -> list[Path]:
    """Writes accuracy.png, density.png and, where edges moved, replaced.png. Says so where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        console.print("no plots: matplotlib is not installed (pip install 'sparsekern[plots]')", markup=False)
        return []
    summary = folder.load_summary()
    layers = summary["layers"]
    drawn = [folder.path / "accuracy.png", folder.path / "density.png"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    draw_metrics(figure, read_csv(folder.metrics.path), summary)
    figure.savefig(drawn[0], dpi=150)
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(layers)), layout="constrained")
    draw_density(figure.subplots(), layers, summary)
    figure.savefig(drawn[1], dpi=150)
    if updates := [row for row in read_csv(folder.topology.path) if int(row["replaced"])]:
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        draw_replaced(figure.subplots(), updates, summary)
        drawn.append(folder.path / "replaced.png")
        figure.savefig(drawn[2], dpi=150)
    return drawn


def draw_metrics(figure: Figure, metrics: list[dict[str, str]], summary: dict[str, Any]) -> None:
    """Loss and error over the epochs, train and test."""
    epochs = [int(row["epoch"]) for row in metrics]
    left, right = figure.subplots(1, 2)
    for name, key, color in (("train", "loss", TRAIN), ("test", "test_loss", TEST)):
        left.plot(epochs, [float(row[key]) for row in metrics], color=color, label=name)
    left.set(ylabel="loss", yscale="log")
    for name, color in (("train", TRAIN), ("test", TEST)):
        accuracies = [100 * float(row[f"{name}_accuracy"]) for row in metrics]
        right.plot(epochs, accuracies, color=color, label=f"{name}, at the end {accuracies[-1]:.1f}%")
    right.set(ylabel="accuracy [%]", ylim=(max(0, lowest_shown(metrics)), 100.5))
    for axes in (left, right):
        axes.set_xlabel("epoch")
        finish(axes)
    figure.suptitle(summary["label"], color=TEXT)


def lowest_shown(metrics: list[dict[str, str]]) -> float:
    """Leaves the first tenth of the epochs out of the accuracy axis, so that the end can be told apart."""
    settled = metrics[len(metrics) // 10 :]
    lowest = min(100 * float(row[f"{name}_accuracy"]) for row in settled for name in ("train", "test"))
    return 10 * (lowest // 10)


def draw_density(axes: Axes, layers: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """A bar a layer, the first at the top."""
    positions = range(len(layers))
    shares = [100 * layer["nnz"] / layer["weights"] for layer in layers]
    axes.barh(positions, shares, color=[TEST if layer["sparse"] else PALE for layer in layers])
    axes.set_yticks(positions, [layer["name"] for layer in layers])
    axes.invert_yaxis()
    for position, share, layer in zip(positions, shares, layers, strict=True):
        text = f" {layer['nnz']:,} of {layer['weights']:,}"
        axes.text(share, position, text, va="center", fontsize=7.5, color=TEXT)
    total = summary["nnz"] / summary["dense_weights"]
    axes.axvline(100 * total, color=TRAIN, linestyle="--", linewidth=1, label=f"all layers, {total:.2%}")
    axes.set(xlabel="density: share of the weights that exist [%]", title=summary["label"])
    axes.margins(y=0.02)
    axes.set_xlim(0, 1.3 * max(shares))
    finish(axes, grid="x")


def draw_replaced(axes: Axes, updates: list[dict[str, str]], summary: dict[str, Any]) -> None:
    """Share of the edges that each update replaced: a pale line a layer, a strong one for all together."""
    by_layer: dict[str, list[tuple[int, float]]] = defaultdict(list)
    by_step: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for row in updates:
        step, replaced, nnz = int(row["step"]), int(row["replaced"]), int(row["nnz"])
        by_layer[row["layer"]].append((step, 100 * replaced / nnz))
        by_step[step][0] += replaced
        by_step[step][1] += nnz
    for index, points in enumerate(by_layer.values()):
        label = "single layers" if index == 0 else None
        axes.plot(*zip(*points, strict=True), color=PALE, linewidth=0.8, marker=".", markersize=3, label=label)
    together = [100 * replaced / nnz for replaced, nnz in by_step.values()]
    axes.plot(list(by_step), together, color=TEST, marker="o", markersize=3.5, label="all layers")
    axes.set(xlabel="step", ylabel="edges replaced by the update [%]", title=summary["label"])
    axes.set_ylim(bottom=0)
    finish(axes)


def finish(axes: Axes, grid: str = "both") -> None:
    axes.grid(axis=grid, color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
