"""Peak memory of whole networks' training step, and what it is made of."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import charts, fresh, nets, report
from benchmarks.options import Memory
from sparsekern import tables

MIB = 2**20
# What is shown: parts of `footprint.of_network`.
PARTS = {
    "weights": ("weights", "other_parameters", "buffers"),
    "indices": ("indices",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer_state",),
    "activations": ("activations",),
}
COLORS = {
    "weights": charts.OURS,
    "indices": "#7fa7d6",
    "gradients": charts.ORANGE,
    "optimizer": "#e3a36f",
    "activations": charts.PALE,
}


def run(options: Memory) -> None:
    networks = nets.chosen(options.network)
    result = report.begin("memory", options)
    result |= {"batch": options.batch, "limit_gib": options.limit, "networks": []}
    for name in networks:
        rows = []
        for sparsity in (0.0, *sorted(options.sparsity)):
            print(f"{name} at {sparsity:g}%", file=sys.stderr, flush=True)
            density = None if sparsity == 0 else 1 - sparsity / 100
            measured = fresh.call(
                "footprint.of_network",
                {"name": name, "density": density, "batch": options.batch, "seed": options.seed},
                threads=options.threads,
                gibibytes=options.limit,
                seconds=options.seconds,
                keep_freed=False,
            )
            rows.append({"candidate": f"sparsekern at {sparsity:g}%" if sparsity else "dense", **measured})
        result["networks"].append({"network": name, "results": rows})
    chart = draw(result, options)
    report.write(result, page(result, chart), options.output, "memory")


def part_sizes(row: dict[str, Any]) -> dict[str, float]:
    """MiB by part."""
    return {part: sum(row[key] for key in keys) / MIB for part, keys in PARTS.items()}


def page(result: dict[str, Any], chart: str | None) -> str:
    paragraphs = [
        "# Memory of whole networks' training step",
        f"MiB, float32, {result['batch']} images. Parts are bytes of live tensors: weights with biases, norms and "
        "buffers; activations are what a forward pass keeps for the backward pass. The peak is the resident memory of "
        "a fresh process in its second step above that after the imports; it gives freed memory back at once.",
        report.where(result),
        *([f"![Parts and peak]({chart})"] if chart else []),
        "## Peak memory",
    ]
    for network in result["networks"]:
        rows, dense = [], network["results"][0]
        for row in network["results"]:
            if "failed" in row:
                rows.append([row["candidate"], *["-"] * len(PARTS), "-", row["failed"], "-"])
                continue
            parts = part_sizes(row)
            share = f"{row['peak'] / dense['peak']:.0%}" if "peak" in dense else "-"
            sizes = [*parts.values(), sum(parts.values()), row["peak"] / MIB]
            rows.append([row["candidate"], *(f"{size:.1f}" for size in sizes), share])
        header = ["", *PARTS, "together", "measured peak", "peak, of dense"]
        paragraphs += [f"### {network['network']}, MiB", report.table(header, rows)]
    return tables.page(paragraphs)


def draw(result: dict[str, Any], options: Memory) -> str | None:
    """A bar a candidate, made of the parts, and a mark at the measured peak."""
    figure = charts.figure(10, 0.9 + 0.42 * sum(1.5 + len(network["results"]) for network in result["networks"]))
    if figure is None:
        return None
    panels = figure.subplots(len(result["networks"]), 1, squeeze=False)[:, 0]
    for panel, network in zip(panels, result["networks"], strict=True):
        rows = [row for row in network["results"] if "failed" not in row]
        parts = {part: [part_sizes(row)[part] for row in rows] for part in COLORS}
        names = [row["candidate"] for row in rows]
        charts.stacked_bars(panel, names, parts, COLORS, "memory of one training step [MiB]", network["network"])
        peaks = [row["peak"] / MIB for row in rows]
        panel.scatter(peaks, range(len(rows)), color=charts.TEXT, marker="|", s=160, label="measured peak", zorder=3)
        charts.label_bars(panel, peaks, [f"{peak:.0f} MiB" for peak in peaks])
    charts.legend_above(figure, panels[0], columns=6)
    return charts.save(figure, options.output, "memory")
