"""Step time and peak memory of one square layer by its width, at a fixed number of edges a neuron."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import charts, fresh, process, report
from benchmarks.options import Width
from sparsekern import tables

# The weight, its gradient, Adam's two states, and two temporaries of Adam's step, in float32.
DENSE_BYTES_A_WEIGHT = 6 * 4
DENSE = "dense"


def run(options: Width) -> None:
    for name, least in (("interval", 2), ("updates", 2)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}; expected at least {least}")
    if bad := [(width, edges) for width in options.widths for edges in options.edges if not 0 < edges <= width]:
        raise ValueError(f"--edges has {bad[0][1]}; expected between 1 and the width, {bad[0][0]}")
    result = report.begin("width", options)
    result |= {name: getattr(options, name) for name in ("batch", "interval", "updates", "sampler")}
    result |= {"limit_gib": options.limit, "time_limit_s": options.seconds, "results": []}
    for edges in (*sorted(options.edges), None):
        for width in sorted(options.widths):
            result["results"].append(cell(width, edges, options))
    name = f"width_{options.threads}_threads"
    chart = draw(result, options, name)
    report.write(result, page(result, chart), options.output, name)


def cell(width: int, edges: int | None, options: Width) -> dict[str, Any]:
    """Times and peaks of one width; {"failed": why} in their place where it does not fit."""
    label = DENSE if edges is None else f"{edges} edges a neuron"
    found: dict[str, Any] = {"layer": label, "width": width, "weights": width * (width if edges is None else edges)}
    if edges is None and (predicted := width * width * DENSE_BYTES_A_WEIGHT / 2**30) > options.limit:
        return found | {"failed": f"not tried: about {predicted:.0f} GiB", "predicted_gib": predicted}
    print(f"width {width}, {label}", file=sys.stderr, flush=True)
    arguments = {
        "width": width,
        "edges": edges,
        "batch": options.batch,
        "interval": options.interval,
        "sampler": options.sampler,
        "seed": options.seed,
    }
    for function, more, keep_freed in (("timed", {"updates": options.updates}, True), ("resident_peak", {}, False)):
        found |= fresh.call(
            f"one_layer.{function}",
            arguments | more,
            threads=options.threads,
            gibibytes=options.limit,
            seconds=options.seconds,
            keep_freed=keep_freed,
        )
        if "failed" in found:
            break
    return found


def slope(widths: Sequence[int], values: Sequence[float]) -> float | None:
    """By which power of the width the values grow, fitted to the wider half of them; None of fewer than two."""
    points = [(math.log(width), math.log(value)) for width, value in zip(widths, values, strict=True)]
    points = points[len(points) // 2 :] if len(points) > 3 else points
    if len(points) < 2:
        return None
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def series(result: dict[str, Any], label: str, read: Any) -> tuple[list[int], list[float]]:
    """(widths, values) of one layer, where there is a value."""
    rows = [row for row in result["results"] if row["layer"] == label and "failed" not in row]
    pairs = [(row["width"], read(row)) for row in rows]
    return [width for width, value in pairs if value], [value for _, value in pairs if value]


def step_ms(row: dict[str, Any]) -> float:
    return row["step_ms"]["median"]


def update_step_ms(row: dict[str, Any]) -> float | None:
    return row["update_step_ms"] and row["update_step_ms"]["median"]


def peak_mib(row: dict[str, Any]) -> float:
    return row["update_peak"] / 2**20


def labels(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["layer"] for row in result["results"]))


def page(result: dict[str, Any], chart: str | None) -> str:
    paragraphs = [
        "# Step time and memory by width",
        f"One layer of as many inputs as outputs, {result['batch']} samples, Adam, float32. A step is forward, "
        f"backward and optimizer; one of {result['interval']} has a GSE update of the topology as well "
        f"({result['sampler']} candidates, one an edge) and is shown apart. Medians in ms. The peak is the resident "
        "memory above that after the imports and a step of a tiny layer, updates included. Each cell ran in fresh "
        f"processes, which could have {result['limit_gib']:g} GiB and {result['time_limit_s']:g} s. Dense layers need "
        f"about {DENSE_BYTES_A_WEIGHT} bytes a weight.",
        process.KEPT.replace("all candidates", "all layers"),
        report.where(result),
        *([f"![Step time and peak memory by width]({chart})"] if chart else []),
        "## By width",
        report.table(*width_table(result)),
        "## Growth",
        "The power of the width that each grows with, fitted to the wider half of the widths; 1 is proportional.",
        slopes_table(result),
    ]
    return tables.page(paragraphs)


def width_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = labels(result)
    header = ["width"]
    for name in names:
        header += [f"{name}: step, ms"] + ([] if name == DENSE else ["with update, ms"]) + ["peak, MiB"]
    rows = []
    for width in dict.fromkeys(row["width"] for row in result["results"]):
        cells = [f"{width:,}"]
        for name in names:
            (row,) = (row for row in result["results"] if (row["layer"], row["width"]) == (name, width))
            if "failed" in row:
                cells += [row["failed"]] + ([] if name == DENSE else ["-"]) + ["-"]
                continue
            update = update_step_ms(row)
            cells.append(f"{step_ms(row):.2f}")
            cells += [] if name == DENSE else [f"{update:.2f}" if update else "-"]
            cells.append(f"{peak_mib(row):.0f}")
        rows.append(cells)
    return header, rows


def slopes_table(result: dict[str, Any]) -> str:
    rows = []
    for name in labels(result):
        fitted = [slope(*series(result, name, read)) for read in (step_ms, update_step_ms, peak_mib)]
        rows.append([name, *("-" if value is None else f"{value:.2f}" for value in fitted)])
    return report.table(["grows with the width to the power", "step", "step with update", "peak memory"], rows)


def draw(result: dict[str, Any], options: Width, name: str) -> str | None:
    """Time on the left and memory on the right, over the width, all logarithmic."""
    figure = charts.figure(11, 6.2)
    if figure is None:
        return None
    left, right = figure.subplots(1, 2)
    colors = [charts.OURS, charts.GREEN, charts.ORANGE, charts.GREY]
    for index, label in enumerate(labels(result)):
        color = charts.TEXT if label == DENSE else colors[index % len(colors)]
        for axes, read, style, what in (
            (left, step_ms, "-", "step"),
            (left, update_step_ms, "--", "step with update"),
            (right, peak_mib, "-", "peak"),
        ):
            widths, values = series(result, label, read)
            if widths:
                power = slope(widths, values)
                grows = "" if power is None else f", slope {power:.2f}"
                text = f"{label}: {what}{grows}" if axes is left else f"{label}{grows}"
                axes.plot(widths, values, color=color, linestyle=style, marker="o", markersize=3.5, label=text)
    if missing := [row for row in result["results"] if "predicted_gib" in row]:
        right.scatter(
            [row["width"] for row in missing],
            [row["predicted_gib"] * 2**10 for row in missing],
            edgecolors=charts.TEXT,
            facecolors="none",
            s=22,
            label="dense: predicted, does not fit",
        )
    limit = result["limit_gib"]
    right.axhline(limit * 2**10, color=charts.GREY, linestyle=":", label=f"limit, {limit:g} GiB")
    left.set_ylabel("time [ms]", fontsize=9)
    right.set_ylabel("peak resident memory [MiB]", fontsize=9)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        widths = sorted({row["width"] for row in result["results"]})
        axes.set_xticks(widths, [f"$2^{{{math.log2(width):g}}}$" for width in widths])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("width of the layer [neurons]", fontsize=9)
        charts.finish(axes)
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return charts.save(figure, options.output, name)
