"""Charts of the layers' steps: speed against dense over sparsity, and the roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import charts
from benchmarks.libraries.ours import NAME
from benchmarks.speed import speeds_against_dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (30, 50, 70, 90, 95, 98, 99, 99.9)
COLUMNS = 5


def draw(result: dict[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Writes the charts. Returns {what each shows: its file name}, empty without matplotlib."""
    rows = math.ceil(len(result["layers"]) / COLUMNS)
    columns = min(COLUMNS, len(result["layers"]))
    speed = charts.figure(1.2 + 2.4 * columns, 1 + 2.5 * rows)
    if speed is None:
        return {}
    _speed(speed, result, rows, columns)
    written = {"Speed against the best dense, by sparsity": charts.save(speed, folder, f"{name}_speed")}
    if result["ceilings"]:
        roofline = charts.figure(8.5, 5.6)
        _roofline(roofline, result)
        written["Roofline"] = charts.save(roofline, folder, f"{name}_roofline")
    return written


def _speed(figure: Figure, result: dict[str, Any], rows: int, columns: int) -> None:
    """A panel a layer, a line a library; above 1 it is faster than the best dense."""
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, layer in zip(panels, result["layers"], strict=False):
        for library, speeds in speeds_against_dense(layer["results"]).items():
            points = sorted(speeds.items())
            positions = [_position(sparsity) for sparsity, _ in points]
            style = {"markersize": 3.5, **charts.STYLES[library]}
            panel.plot(positions, [speed for _, speed in points], label=library, **style)
        dense = [row["ms"]["median"] for row in layer["results"] if row["library"] == "dense"]
        panel.axhline(1, color=charts.TEXT, linewidth=1, label="best dense")
        panel.axhline(min(dense) / dense[0], color=charts.TEXT, linewidth=1, linestyle=":", label="default dense")
        panel.set_yscale("log")
        _sparsity_axis(panel, layer)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_title(layer["layer"].replace(", ", "\n"), fontsize=9, color=charts.TEXT)
        charts.finish(panel)
    for panel in panels[len(result["layers"]) :]:
        panel.set_visible(False)
    labelled: dict[str, Any] = {}
    for panel in panels:
        labelled |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=6, frameon=False, fontsize=9.5)
    figure.supxlabel("sparsity [%], on the scale of zeros per nonzero", fontsize=9.5)
    figure.supylabel("speed of a training step, best dense = 1", fontsize=9.5)


def _position(sparsity: float) -> float:
    return math.log10(sparsity / (100 - sparsity))


def _sparsity_axis(axes: Axes, layer: dict[str, Any]) -> None:
    measured = [row["sparsity"] for row in layer["results"] if row["library"] != "dense"]
    ticks = [tick for tick in TICKS if min(measured) <= tick <= max(measured)] or sorted(set(measured))
    axes.set_xticks([_position(tick) for tick in ticks], [f"{tick:g}" for tick in ticks], fontsize=8)


def _roofline(figure: Figure, result: dict[str, Any]) -> None:
    """Every cell of ours, the peers' pale, below the ceilings that were measured with as many threads."""
    axes = figure.subplots()
    seen: set[str] = set()
    intensities: list[float] = []
    for layer in result["layers"]:
        cells = [row for row in layer["results"] if row["library"] != "dense"]
        others = [row for row in cells if row["library"] != NAME]
        own = sorted((row for row in cells if row["library"] == NAME), key=lambda row: row["sparsity"])
        label = f"sparsekern, {layer['kind']} (a line a layer, to the left sparser)"
        color = charts.OURS if layer["kind"] == "linear" else charts.ORANGE
        axes.scatter(
            [row["intensity"] for row in others],
            [row["gflops"] for row in others],
            color=charts.PALE,
            s=9,
            zorder=2,
            label=None if "others" in seen else "other sparse libraries",
        )
        axes.plot(
            [row["intensity"] for row in own],
            [row["gflops"] for row in own],
            color=color,
            marker="o" if layer["kind"] == "linear" else "s",
            markersize=4,
            linewidth=1,
            zorder=3,
            label=None if label in seen else label,
        )
        seen |= {label, "others"} if others else {label}
        intensities += [row["intensity"] for row in cells]
    axes.set(xscale="log", yscale="log")
    _ceilings(axes, result["ceilings"]["entries"][-1], 0.8 * min(intensities), 1.25 * max(intensities))
    axes.set(
        xlabel="arithmetic intensity [floating-point operations per byte that must be moved]",
        ylabel="speed of a training step [GFLOP/s at the nonzeros]",
        title=f"{result['dtype']}, {result['threads']} thread(s)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    charts.finish(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 0.02))


def _ceilings(axes: Axes, entry: dict[str, Any], left: float, right: float) -> None:
    """The roof, of multiply-adds and DRAM reads, and what loads from the caches allow, between two intensities."""
    peak, bandwidth = entry["fma_gflops"], entry["read_gbps"]["DRAM"]
    knee = peak / bandwidth
    right = max(right, 2 * knee)
    corners = [left, min(max(left, knee), right), right]
    roof = [min(peak, bandwidth * corner) for corner in corners]
    axes.plot(corners, roof, color=charts.TEXT, linewidth=1.2, zorder=1)
    levels = {name: value for name, value in entry["load_fma_gflops"].items() if name != "DRAM"}
    for value in levels.values():
        ends = [value / bandwidth, right]
        axes.plot(ends, [value, value], color=charts.TEXT, linewidth=0.7, linestyle="--", zorder=1)
    texts = {f"multiply-adds\nin registers: {peak:.0f}": peak}
    texts |= {f"a load from {name}\nfor each: {value:.0f}": value for name, value in levels.items()}
    _label_right(axes, texts)
    middle = math.sqrt(left * corners[1])
    axes.annotate(
        f"DRAM read: {bandwidth:.0f} GB/s",
        (middle, bandwidth * middle),
        xytext=(-6, 4),
        ha="right",
        textcoords="offset points",
        fontsize=8,
        color=charts.TEXT,
    )


def _label_right(axes: Axes, texts: dict[str, float]) -> None:
    """Writes texts of two lines beside the axes at these heights, or lower where they would touch."""
    low, high = axes.get_ylim()
    apart = math.log10(high / low) * 0.055
    height = math.inf
    for text, value in sorted(texts.items(), key=lambda item: -item[1]):
        height = min(math.log10(value), height - apart)
        axes.text(
            1.01,
            10**height,
            text,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7.5,
            color=charts.TEXT,
            linespacing=0.95,
        )
