"""The goals for an H200, held against what was measured there or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.gpu.cases import LINEAR, PRODUCTS
from benchmarks.gpu.layers import milliseconds, speeds
from benchmarks.gpu.ways import CSR, OURS
from benchmarks.speed import BreakEven

LAYER = LINEAR[0].name
UNMEASURED = ("not measured", "-")
Found = tuple[str, str]


def goals_table(sections: dict[str, Any]) -> str:
    rows = []
    for precision, sparsity, least in (
        ("bfloat16", 99.0, 2.5),
        ("bfloat16", 99.5, 4.0),
        ("float32", 90.0, 2.0),
        ("float32", 95.0, 4.0),
    ):
        rows.append(
            [
                f"{precision} step at {sparsity:g}%: at least {least:g}x dense",
                *at_least(sections, precision, sparsity, least),
            ]
        )
    for precision, most in (("bfloat16", 97.0), ("float32", 80.0)):
        rows.append([f"{precision} step faster than dense from {most:g}% on", *from_on(sections, precision, most)])
    rows.append(["each product of each linear layer: at least 5x cuSPARSE", *against_cusparse(sections, 5.0)])
    for name, what in (("time", step_ms), ("memory", step_bytes)):
        rows.append([f"ViT-B/16 at 98% in bfloat16: less {name} than dense", *vit(sections, what)])
    return report.table([f"goal ({LAYER}, Adam)", "measured", "reached"], rows)


def layer(sections: dict[str, Any]) -> list[dict[str, Any]]:
    found = sections.get("layers", {"entries": []})["entries"]
    return next((entry["results"] for entry in found if entry["layer"] == LAYER), [])


def ours(rows: list[dict[str, Any]], precision: str) -> list[str]:
    return list(dict.fromkeys(row["way"] for row in rows if row["family"] == OURS and row["precision"] == precision))


def at_least(sections: dict[str, Any], precision: str, sparsity: float, least: float) -> Found:
    """The fastest of our ways there."""
    rows = layer(sections)
    found = {way: speeds(rows, way, precision, "Adam").get(sparsity) for way in ours(rows, precision)}
    known = {way: speed for way, speed in found.items() if speed is not None}
    if not known:
        return UNMEASURED
    way = max(known, key=known.__getitem__)
    return f"{known[way]:.2f}x ({way})", yes(known[way] >= least)


def from_on(sections: dict[str, Any], precision: str, most: float) -> Found:
    rows = layer(sections)
    evens = {
        way: BreakEven.of(found) for way in ours(rows, precision) if (found := speeds(rows, way, precision, "Adam"))
    }
    if not evens:
        return UNMEASURED
    way = min(evens, key=lambda name: (evens[name].bound == "above", evens[name].sparsity))
    even = evens[way]
    return f"{even} ({way})", yes(even.bound != "above" and even.sparsity <= most)


def against_cusparse(sections: dict[str, Any], least: float) -> Found:
    """The least of all layers, products, precisions and sparsities that both have, with our fastest way in each."""
    ratios = []
    for entry in sections.get("layers", {"entries": []})["entries"]:
        for theirs in (row for row in entry["results"] if row["family"] == CSR):
            same = [
                row
                for row in entry["results"]
                if row["family"] == OURS
                and (row["precision"], row["sparsity"]) == (theirs["precision"], theirs["sparsity"])
            ]
            ratios += [
                (
                    milliseconds(theirs, product) / min(milliseconds(row, product) for row in same),
                    entry["layer"],
                    product,
                )
                for product in PRODUCTS
                if same
            ]
    if not ratios:
        return UNMEASURED
    ratio, name, product = min(ratios)
    return f"from {ratio:.1f}x ({name}, {product}) to {max(ratios)[0]:.1f}x", yes(ratio >= least)


def step_ms(row: dict[str, Any]) -> float | None:
    return row["ms"]["median"] if row["ms"] else None


def step_bytes(row: dict[str, Any]) -> float | None:
    return None if row["bytes"]["peak"] is None else sum(row["bytes"].values())


def vit(sections: dict[str, Any], what: Callable[[dict[str, Any]], float | None]) -> Found:
    found = sections.get("networks", {"entries": []})["entries"]
    rows = next((entry["results"] for entry in found if entry["network"] == "ViT-B/16"), [])
    dense = [what(row) for row in rows if row["candidate"] == "dense bfloat16"]
    sparse = [
        value for row in rows if row["sparsity"] == 98.0 and row["precision"] == "bfloat16" and (value := what(row))
    ]
    if not sparse or not dense or dense[0] is None:
        return UNMEASURED
    return f"{min(sparse) / dense[0]:.0%} of dense's", yes(min(sparse) < dense[0])


def yes(reached: bool) -> str:
    return "yes" if reached else "no"
