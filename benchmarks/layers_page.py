"""The page of the layers' steps."""

from __future__ import annotations

import math
from typing import Any

from benchmarks import ceilings, process, report
from benchmarks.libraries.ours import NAME
from benchmarks.speed import BreakEven, speeds_against_dense
from sparsekern import tables

SUMMARY = (30, 50, 80, 90, 95, 98, 99, 99.9)  # percent of zeros
PEERS_FROM = 80.0  # where people train sparse


def page(result: dict[str, Any], charts: dict[str, str]) -> str:
    measured = result["ceilings"]
    paragraphs = [
        "# One layer's training step",
        f"Forward, input gradient and weight gradient, {result['dtype']}, through public modules under autograd; "
        f"medians of {result['rounds']} rounds, in each of which every candidate ran once on the same fresh inputs. "
        "Results were compared with dense before. Dense has two candidates a layer, torch's default and another; the "
        'faster one is "best dense".',
        process.KEPT,
        report.where(result),
        *(f"{note}." for note in result["notes"]),
        *(f"![{title}]({name})" for title, name in charts.items()),
        "## Summary",
        summary(result["layers"]),
        break_even_table(result["layers"]),
        *([peers_table(result["layers"])] if len(libraries(result["layers"])) > 1 else []),
        *others_section(result["layers"]),
        "## Cells",
        *(layer_section(layer, measured) for layer in result["layers"]),
    ]
    if measured:
        paragraphs += [
            "## Ceilings",
            f"What the machine can do at most, with vectors of {measured['vector_bytes']} bytes: multiply-adds on "
            "registers; with one operand of each loaded, from each level of memory; reading and copying memory.",
            ceilings.table(measured),
        ]
    return tables.page(paragraphs)


def dense_ms(layer: dict[str, Any]) -> dict[str, float]:
    """By candidate, the default first."""
    return {row["candidate"]: row["ms"]["median"] for row in layer["results"] if row["library"] == "dense"}


def libraries(layers: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for layer in layers for name in speeds_against_dense(layer["results"])))


def summary(layers: list[dict[str, Any]]) -> str:
    """How many times faster than the best dense our layers are, by sparsity."""
    speeds = [speeds_against_dense(layer["results"]).get(NAME, {}) for layer in layers]
    shown = [sparsity for sparsity in SUMMARY if any(sparsity in of_layer for of_layer in speeds)]
    rows = []
    for layer, of_layer in zip(layers, speeds, strict=True):
        default, best = next(iter(dense_ms(layer).values())), min(dense_ms(layer).values())
        cells = [f"{of_layer[sparsity]:.1f}x" if sparsity in of_layer else "-" for sparsity in shown]
        rows.append([layer["layer"], f"{default:.1f}", f"{best:.1f}", *cells])
    header = ["speed against the best dense, by sparsity", "default dense, ms", "best dense, ms"]
    return report.table([*header, *(f"{sparsity:g}%" for sparsity in shown)], rows)


def break_even_table(layers: list[dict[str, Any]]) -> str:
    names = libraries(layers)
    rows = [
        [
            layer["layer"],
            *(str(BreakEven(**layer["break_even"][name])) if name in layer["break_even"] else "-" for name in names),
        ]
        for layer in layers
    ]
    return report.table(["faster than the best dense from this sparsity on", *names], rows)


def peers_table(layers: list[dict[str, Any]]) -> str:
    """How many times faster than each other library ours is, over all cells from PEERS_FROM on that both have."""
    rows = []
    for peer in (name for name in libraries(layers) if name != NAME):
        for kind in dict.fromkeys(layer["kind"] for layer in layers):
            ratios = [
                ours[sparsity] / theirs[sparsity]
                for speeds in (speeds_against_dense(layer["results"]) for layer in layers if layer["kind"] == kind)
                for ours, theirs in [(speeds.get(NAME, {}), speeds.get(peer, {}))]
                for sparsity in ours.keys() & theirs.keys()
                if sparsity >= PEERS_FROM
            ]
            if ratios:
                values = [f"{value:.1f}x" for value in (geometric_mean(ratios), min(ratios), max(ratios))]
                rows.append([f"{peer}, {kind}", str(len(ratios)), *values])
    header = ["sparsekern against", f"cells from {PEERS_FROM:g}% on", "geometric mean", "least", "most"]
    return report.table(header, rows)


def others_section(layers: list[dict[str, Any]]) -> list[str]:
    """A table for each other condition: our layer's time under it, as a multiple of that under the run's own."""
    parts = []
    for condition in dict.fromkeys(each["condition"] for layer in layers for each in layer.get("others", ())):
        ratios: dict[str, dict[float, float]] = {}
        for layer in layers:
            own = {row["sparsity"]: row["ms"]["median"] for row in layer["results"] if row["library"] == NAME}
            ratios[layer["layer"]] = {
                each["sparsity"]: each["ms"]["median"] / own[each["sparsity"]]
                for each in layer["others"]
                if each["condition"] == condition
            }
        shown = sorted({sparsity for of_layer in ratios.values() for sparsity in of_layer})
        rows = [
            [name, *(f"{of_layer[sparsity]:.2f}x" if sparsity in of_layer else "-" for sparsity in shown)]
            for name, of_layer in ratios.items()
        ]
        means = [
            geometric_mean([of_layer[sparsity] for of_layer in ratios.values() if sparsity in of_layer])
            for sparsity in shown
        ]
        rows.append(["geometric mean", *(f"{mean:.2f}x" for mean in means)])
        header = [f"time with {condition} / time here", *(f"{sparsity:g}%" for sparsity in shown)]
        parts += [
            f"## Against {condition}",
            f"Our layer with {condition}, and otherwise the same, in the same rounds.",
            report.table(header, rows),
        ]
    return parts


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def layer_section(layer: dict[str, Any], measured: dict[str, Any] | None) -> str:
    """One layer's cells: medians in ms, speed at the nonzeros, and how often faster than dense."""
    rows = layer["results"]
    dense = dense_ms(layer)
    default, best = next(iter(dense.values())), min(dense.values())
    names = list(dict.fromkeys(row["candidate"] for row in rows if row["library"] != "dense"))
    body = []
    for sparsity in sorted({row["sparsity"] for row in rows if row["library"] != "dense"}):
        found = {row["candidate"]: row for row in rows if row["sparsity"] == sparsity}
        cells = [f"{sparsity:g}%", *(f"{found[name]['ms']['median']:.2f}" if name in found else "-" for name in names)]
        if NAME in found:
            own, ms = found[NAME]["gflops"], found[NAME]["ms"]["median"]
            share = [f"{own / measured['entries'][-1]['fma_gflops']:.0%}"] if measured else []
            cells += [f"{own:.0f}", *share, f"{best / ms:.2f}", f"{default / ms:.2f}"]
        else:
            cells += ["-"] * (4 if measured else 3)
        body.append(cells)
    header = ["sparsity", *(f"{name}, ms" for name in names), "GFLOP/s", "best dense / ours", "default dense / ours"]
    if measured:
        header.insert(-2, "of peak")
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in dense.items())
    parts = [f"### {layer['layer']}", f"Dense: {times}.", report.table(header, body)]
    return "\n\n".join([*parts, *(f"{note}." for note in layer["notes"])])
