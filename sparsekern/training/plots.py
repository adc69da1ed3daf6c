"""A run's plots, drawn from its files. matplotlib is an extra: without it there are none."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from sparsekern.training.folder import RunFolder
from sparsekern.training.metrics import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, TEST, PALE, TEXT = "#c2571a", "#1f5fa8", "#aab4c0", "#2b3138"


def draw_plots(folder: RunFolder, console: Console) -> None:
    """Writes accuracy.png, for sparse runs density.png, and where edges moved replaced.png.

    Says so where matplotlib is missing.
    """
    if not is_matplotlib_there(console):
        return
    summary = folder.load_summary()
    layers = summary["layers"]
    figures = {"accuracy": new_figure(9, 3.6)}
    draw_metrics(figures["accuracy"], read_csv(folder.metrics.path), summary)
    if any(layer["sparse"] for layer in layers):
        height = 1.6 + 0.22 * len(layers)
        figures["density"] = new_figure(7.5, height)
        draw_density(figures["density"].subplots(), layers, summary, legend_top=-0.5 / (height - 1.1))
    updates = read_csv(folder.topology.path)
    if any(int(row["replaced"]) for row in updates):
        figures["replaced"] = new_figure(7.5, 3.6)
        draw_replaced(figures["replaced"].subplots(), updates, summary)
    for name, figure in figures.items():
        figure.savefig(folder.path / f"{name}.png", dpi=150)


def is_matplotlib_there(console: Console) -> bool:
    """Whether plots can be drawn; says so where they cannot."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        console.print("no plots: matplotlib is not installed (pip install 'sparsekern[plots]')", markup=False)
        return False
    return True


def new_figure(width: float, height: float) -> Figure:
    """Its sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


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


def draw_density(axes: Axes, layers: list[dict[str, Any]], summary: dict[str, Any], legend_top: float) -> None:
    """A line a layer, the first at the top, from the density of all layers together to its own."""
    together = 100 * summary["nnz"] / summary["dense_weights"]
    positions = range(len(layers))
    shares = [100 * layer["nnz"] / layer["weights"] for layer in layers]
    colors = [TEST if layer["sparse"] else PALE for layer in layers]
    axes.axvline(together, color=TRAIN, linestyle="--", linewidth=1, label=f"all layers together, {together:.3g}%")
    axes.hlines(positions, together, shares, color=colors, linewidth=2)
    axes.scatter(shares, positions, color=colors, s=28, zorder=3, label="each layer: its edges / places")
    axes.set_yticks(positions, [layer["name"] for layer in layers])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.6 * min(shares), 140)
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 2, 5, 10, 20, 50, 100) if tick >= 0.6 * min(shares)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    for position, layer in enumerate(layers):
        text = f"{layer['nnz']:,} / {layer['weights']:,}"
        axes.text(1.02, position, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=TEXT)
    axes.set(xlabel="density [%]", title=summary["label"])
    finish(axes, grid="x")
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper left", bbox_to_anchor=(0, legend_top))


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


def finish(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    axes.grid(axis=grid, color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
