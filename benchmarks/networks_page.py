"""The page and the chart of whole networks' steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import charts, process, report
from sparsekern import tables

PARTS = ("forward", "backward", "optimizer")
# Products strong, what remains beside them in paler tones.
COLORS = {
    "sparse products": charts.OURS,
    "dense products": charts.TEXT,
    "attention": "#7a5ea8",
    "norms": charts.ORANGE,
    "activations": "#e3a36f",
    "copies and sums": charts.GREEN,
    "other": charts.PALE,
    "optimizer": "#d9c65b",
}


def page(result: dict[str, Any], chart: str | None) -> str:
    paragraphs = [
        "# Whole networks' training step",
        f"Forward, backward and optimizer, float32, {result['batch']} images; medians of {result['rounds']} rounds, in "
        "each of which every candidate ran once on the same fresh images. The sparse networks' gradients were compared "
        'before with those of dense networks with the same zeros. "dense" is the network as users run it; the sparse '
        "ones, and \"dense, sparsekern's modules\", have this library's fused norms, activations and attention.",
        process.KEPT,
        report.where(result),
        *([f"![Parts of the step]({chart})"] if chart else []),
        "## Steps",
    ]
    for network in result["networks"]:
        paragraphs += [f"### {network['network']}, one step", steps_table(network)]
        paragraphs += [f"{note}." for note in network["notes"]]
    paragraphs.append("## Breakdown")
    paragraphs.append(
        "Share of each kind of operator in one profiled forward and backward, in ms of the median of those two. "
        '"Other" is what lies between operators as well.'
    )
    for network in result["networks"]:
        paragraphs += [f"### {network['network']}, by kind of operator", breakdown_table(network)]
    return tables.page(paragraphs)


def steps_table(network: dict[str, Any]) -> str:
    dense = [row["ms"]["median"] for row in network["results"] if not row["sparsity"]]
    default, best = dense[0], min(dense)
    rows = [
        [
            row["candidate"],
            *(f"{row['parts_ms'][part]['median']:.1f}" for part in PARTS),
            f"{row['ms']['median']:.1f}",
            f"{default / row['ms']['median']:.2f}x",
            f"{best / row['ms']['median']:.2f}x",
        ]
        for row in network["results"]
    ]
    header = ["", *(f"{part}, ms" for part in PARTS), "step, ms", "faster than dense", "than the best dense"]
    return report.table(header, rows)


def breakdown_ms(row: dict[str, Any]) -> dict[str, float]:
    """ms of forward and backward by kind of operator."""
    both = sum(row["parts_ms"][part]["median"] for part in PARTS[:2])
    return {kind: share * both for kind, share in row["breakdown"].items()}


def breakdown_table(network: dict[str, Any]) -> str:
    kinds = list(network["results"][0]["breakdown"])
    rows = [[row["candidate"], *(f"{breakdown_ms(row)[kind]:.1f}" for kind in kinds)] for row in network["results"]]
    return report.table(["", *kinds], rows)


def draw(result: dict[str, Any], folder: Path, name: str) -> str | None:
    """A bar a candidate, made of the kinds of operator and the optimizer."""
    figure = charts.figure(10, 0.9 + 0.42 * sum(1.5 + len(network["results"]) for network in result["networks"]))
    if figure is None:
        return None
    panels = figure.subplots(len(result["networks"]), 1, squeeze=False)[:, 0]
    for panel, network in zip(panels, result["networks"], strict=True):
        rows = network["results"]
        sizes = [breakdown_ms(row) | {"optimizer": row["parts_ms"]["optimizer"]["median"]} for row in rows]
        parts = {kind: [size[kind] for size in sizes] for kind in COLORS}
        names = [row["candidate"] for row in rows]
        ends = charts.stacked_bars(panel, names, parts, COLORS, "one training step [ms]", network["network"])
        medians = [row["ms"]["median"] for row in rows]
        charts.label_bars(panel, ends, [f"{ms:.0f} ms, {medians[0] / ms:.1f}x" for ms in medians])
    charts.legend_above(figure, panels[0], columns=4)
    return charts.save(figure, folder, name)
