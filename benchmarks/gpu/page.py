"""docs/gpu-measured.md: what the result files of the GPU runs say, and nothing where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import place
from benchmarks.gpu.cases import PRODUCTS
from benchmarks.gpu.goals import goals_table
from benchmarks.gpu.layers import AGAINST, OPTIMIZERS, milliseconds, speeds
from benchmarks.gpu.options import SECTIONS
from benchmarks.gpu.ways import CSR, DENSE, OURS
from benchmarks.speed import BreakEven
from sparsekern import tables

MIB = 1 << 20
NOTHING = "**Not measured on a GPU yet.** No figure is claimed."
BELOW = "Cells are how many times faster than the fastest dense of the named precision; below 1, dense is faster."


def runs(results: Path) -> dict[str, dict[str, Any]]:
    """By folder, the sections of each machine's run that are there; rehearsals are none."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*/gpu/*.json")):
        content = json.loads(path.read_text())
        if not content.get("smoke") and content.get("device") == "cuda":
            found.setdefault(path.parent.parent.name, {})[path.stem] = content
    return {name: sections for name, sections in found.items() if sections.keys() & set(SECTIONS)}


def page(results: Path) -> str:
    paragraphs = ["# Measured on GPUs", "Made by `python -m benchmarks gpu-page` from the files of `make gpu`."]
    measured = runs(results)
    if not measured:
        return tables.page([*paragraphs, NOTHING])
    for sections in measured.values():
        paragraphs += machine_part(sections)
    return tables.page(paragraphs)


def machine_part(sections: dict[str, Any]) -> list[str]:
    any_section = next(sections[name] for name in SECTIONS if name in sections)
    made = any_section["machine"]
    parts = [
        f"## {made['gpu']['name']}",
        f"On {any_section['date']} at commit {made['commit']}: {place.where(made)}; medians of {any_section['rounds']} "
        "rounds, random data, cold second-level cache, times of the GPU.",
        *run_part(sections.get("gpu")),
    ]
    layers = [*entries(sections, "layers"), *entries(sections, "convolutions")]
    if layers:
        parts += ["### Goals", "Set before anything was measured.", goals_table(sections)]
        parts += ["### Training steps of single layers", BELOW, *steps_part(layers)]
        parts += ["### Products alone", BELOW, *products_part(layers)]
        parts += ["### Memory of a layer's step", *memory_part(layers)]
    for entry in entries(sections, "networks"):
        parts += [f"### {entry['network']}", *network_part(entry)]
    if "ceilings" in sections:
        parts += ["### Ceilings", ceilings_table(entries(sections, "ceilings"))]
    if "counters" in sections:
        parts += ["### Counters", *counters_part(entries(sections, "counters"))]
    return [*parts, *notes_part(sections)]


def entries(sections: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return sections[name]["entries"] if name in sections else []


def run_part(summary: dict[str, Any] | None) -> list[str]:
    """What became of each step of `make gpu`."""
    if summary is None:
        return []
    rows = [[name, f"{step['seconds']:.0f}", step["ended"]] for name, step in summary["steps"].items()]
    return ["### The run", report.table(["step", "seconds", "came to"], [[a, c, b] for a, b, c in rows], left=2)]


def steps_part(layers: list[dict[str, Any]]) -> list[str]:
    """For each optimizer a table of all layers, and the crossovers."""
    parts = []
    for optimizer in OPTIMIZERS:
        shown = sparsities(layers)
        rows = [
            [entry["layer"], way, f"dense {against}", *(cell(found.get(sparsity)) for sparsity in shown)]
            for entry in layers
            for way, precision in sparse_ways(entry)
            for against in AGAINST[precision]
            if (found := speeds(entry["results"], way, against, optimizer))
        ]
        header = [f"step with {optimizer}", "", "against", *(f"{sparsity:g}%" for sparsity in shown)]
        parts.append(report.table(header, rows, left=3))
    rows = [
        [entry["layer"], even["way"], f"dense {even['against']}", str(BreakEven(even["bound"], even["sparsity"]))]
        for entry in layers
        for even in entry.get("break_even", ())
    ]
    return [*parts, report.table(["faster (step with Adam) from this sparsity on", "", "against", ""], rows, left=3)]


def products_part(layers: list[dict[str, Any]]) -> list[str]:
    parts = []
    for entry in layers:
        shown = sparsities([entry])
        rows = [
            [way, f"{product}, dense {against}", *(cell(found.get(sparsity)) for sparsity in shown)]
            for way, precision in sparse_ways(entry)
            for product in PRODUCTS
            for against in AGAINST[precision][:1]
            if (found := speeds(entry["results"], way, against, product))
        ]
        if not rows:
            continue
        dense = [each for each in entry["results"] if each["family"] == DENSE]
        times = [[each["way"], *(f"{milliseconds(each, product):.3f}" for product in PRODUCTS)] for each in dense]
        parts += [
            f"**{entry['layer']}**",
            report.table(["dense, ms", *PRODUCTS], times),
            report.table(["speed", "product and against", *(f"{sparsity:g}%" for sparsity in shown)], rows, left=2),
        ]
    return parts


def memory_part(layers: list[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in layers:
        for each in entry["results"]:
            if each["bytes"]["peak"] is not None and (each["sparsity"] in (None, 90.0, 99.0)):
                held, peak = (each["bytes"][name] / MIB for name in ("held", "peak"))
                rows.append([entry["layer"], label(each), f"{held:,.1f}", f"{peak:,.1f}", f"{held + peak:,.1f}"])
    return [report.table(["", "", "held, MiB", "a step on top, MiB", "together, MiB"], rows, left=2)]


def network_part(entry: dict[str, Any]) -> list[str]:
    header = [
        "",
        "forward, ms",
        "backward, ms",
        "optimizer, ms",
        "step, ms",
        "of dense's step",
        "held, MiB",
        "most, MiB",
    ]
    header.append("of dense's memory")
    dense = {each["precision"]: each for each in entry["results"] if each["sparsity"] is None}
    rows = []
    for each in entry["results"]:
        beside = dense.get(each["precision"])
        held, peak = each["bytes"]["held"], each["bytes"]["peak"]
        parts = [f"{value:.2f}" for value in each["parts_ms"].values()] if each["ms"] else ["-"] * 3
        step = f"{each['ms']['median']:.2f}" if each["ms"] else "-"
        share = (
            f"{each['ms']['median'] / beside['ms']['median']:.0%}" if each["ms"] and beside and beside["ms"] else "-"
        )
        of_memory = "-"
        if peak is not None and beside and beside["bytes"]["peak"] is not None:
            of_memory = f"{(held + peak) / sum(beside['bytes'].values()):.0%}"
        most = "-" if peak is None else f"{(held + peak) / MIB:,.0f}"
        rows.append([each["candidate"], *parts, step, share, f"{held / MIB:,.0f}", most, of_memory])
    text = f"{entry['batch']} images of {entry['size']}x{entry['size']}, eager; dense of the same precision is 100%."
    return [text, report.table(header, rows)]


def ceilings_table(found: list[dict[str, Any]]) -> str:
    rows = [
        [each["ceiling"], f"{each['value']:,.1f} {each['unit']}" if "value" in each else each["failed"]]
        for each in found
    ]
    return report.table(["at most", ""], rows)


def counters_part(found: list[dict[str, Any]]) -> list[str]:
    """The longest kernel of each product, by ncu."""
    rows, failed = [], []
    for entry in found:
        name = f"{entry['backend']} {entry['precision']} at {entry['sparsity']:g}%"
        if "failed" in entry:
            failed.append(f"{name}: {entry['failed']}.")
            continue
        for product in entry["products"]:
            main = max(product["kernels"], key=lambda kernel: kernel["duration, ns"])
            counted = {key: value for key, value in main.items() if key.endswith(("%", "of peak"))}
            rows.append(
                [
                    f"{name}, {product['product']}",
                    main["kernel"][:40],
                    f"{product['multiply-adds a clock and multiprocessor']:g}",
                    f"{product['at most from shared memory']:g}",
                    *("-" if value is None else f"{value:.1f}" for value in counted.values()),
                ]
            )
            header = ["", "kernel", "multiply-adds a clock and multiprocessor", "most from shared memory", *counted]
    return [*([report.table(header, rows, left=2)] if rows else []), *failed]


def notes_part(sections: dict[str, Any]) -> list[str]:
    """All that was left out, and why."""
    lines = [
        f"{name}, {entry.get('layer') or entry.get('network')}: {note}"
        for name in SECTIONS
        for entry in entries(sections, name)
        for note in entry.get("notes", ())
    ]
    lines += [
        f"{name}: {sections[name]['ended']}"
        for name in SECTIONS
        if name in sections and sections[name]["ended"] != "whole"
    ]
    return ["### Left out", *(f"{line}." for line in lines)] if lines else []


def sparse_ways(entry: dict[str, Any]) -> list[tuple[str, str]]:
    ways = [(each["way"], each["precision"]) for each in entry["results"] if each["family"] in (OURS, CSR)]
    return list(dict.fromkeys(ways))


def sparsities(layers: list[dict[str, Any]]) -> list[float]:
    return sorted({each["sparsity"] for entry in layers for each in entry["results"] if each["sparsity"] is not None})


def label(each: dict[str, Any]) -> str:
    return each["way"] if each["sparsity"] is None else f"{each['way']} at {each['sparsity']:g}%"


def cell(speed: float | None) -> str:
    return "-" if speed is None else f"{speed:.2f}x"
