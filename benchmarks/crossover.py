"""Writes sparsekern/crossover.json and docs/crossover.md from the result files of `layers` and of `make gpu`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu.page import runs
from benchmarks.gpu.ways import OURS
from benchmarks.libraries.ours import NAME
from benchmarks.options import Crossover as Options
from benchmarks.speed import BreakEven
from sparsekern import tables
from sparsekern.atomic import replace_file
from sparsekern.crossover import Crossover

LINEAR = re.compile(r"linear (\d+)->(\d+)")
CONV = re.compile(r"conv (\d+)x\d+ (?:stride \d+ )?(\d+)->(\d+)")
ONE_THREAD = 1  # of several numbers of threads, the one that all machines have


def run(options: Options) -> None:
    found = [*on_cpus(options.results), *on_gpus(options.results)]
    if not found:
        raise ValueError(f"--results is {options.results}, where no result of a layer is")
    content = {"made_by": "python -m benchmarks crossover", "crossovers": [asdict(entry) for entry in found]}
    replace_file(options.table, lambda aside: aside.write_text(json.dumps(content, indent=1) + "\n"))
    options.file.write_text(page(found))
    print(f"written to {options.table} and {options.file}")


def on_cpus(results: Path) -> Iterator[Crossover]:
    for path in sorted(results.glob("*/layers_*.json")):
        result = json.loads(path.read_text())
        if result["threads"] != ONE_THREAD:
            continue
        for layer in result["layers"]:
            if NAME in layer["break_even"]:
                yield Crossover(
                    device="cpu",
                    machine=result["machine"]["processor"],
                    kernels=result["machine"]["instruction_set"],
                    dtype=result["dtype"],
                    against=result["dtype"],
                    layer=layer["layer"],
                    **matrix(layer["layer"]),
                    **layer["break_even"][NAME],
                    source=source(path, results, result),
                )


def on_gpus(results: Path) -> Iterator[Crossover]:
    for folder, sections in runs(results).items():
        for name in ("layers", "convolutions"):
            for entry in sections.get(name, {"entries": []})["entries"]:
                for backend, even in own(entry):
                    path = results / folder / "gpu" / f"{name}.json"
                    yield Crossover(
                        device="cuda",
                        machine=sections[name]["machine"]["gpu"]["name"],
                        kernels=backend,
                        dtype=even["precision"],
                        against=even["against"],
                        layer=entry["layer"],
                        **matrix(entry["layer"]),
                        bound=even["bound"],
                        sparsity=even["sparsity"],
                        source=source(path, results, sections[name]),
                    )


def own(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(backend, break-even) of each of sparsekern's ways."""
    backends = {row["way"]: row["backend"] for row in entry["results"] if row["family"] == OURS}
    for even in entry.get("break_even", ()):
        if even["way"] in backends:
            yield backends[even["way"]], even


def matrix(name: str) -> dict[str, int]:
    """The weight's matrix, from a layer's name.

    Raises:
        ValueError: the name is none of `benchmarks.shapes`.
    """
    if found := LINEAR.match(name):
        return {"kernel": 0, "rows": int(found[2]), "columns": int(found[1])}
    if found := CONV.match(name):
        kernel, inputs, outputs = (int(each) for each in found.groups())
        return {"kernel": kernel, "rows": outputs, "columns": inputs * kernel**2}
    raise ValueError(f"the layer {name!r} has neither a linear layer's nor a convolution's name")


def source(path: Path, results: Path, result: dict[str, Any]) -> str:
    versions = result["machine"]["versions"]
    made = f"commit {result['machine']['commit']}, torch {versions['torch']}, {result['date']}"
    return f"benchmarks/results/{path.relative_to(results).as_posix()} ({made})"


def page(found: list[Crossover]) -> str:
    paragraphs = [
        "# Where dense is faster",
        "The sparsity from which on a layer's training step (forward and both gradients; on a GPU with Adam) was "
        "faster sparse than the fastest dense of the same machine. Below it, use `torch.nn`'s layers: `sparsify` "
        "leaves them dense with `exclude`. `≤` says faster at all that was measured, from there on; `>` at none, up to "
        "there.",
        "Made by `python -m benchmarks crossover` from the result files, along with the table that `sparsekern info` "
        "reads: it names the layers of a network for which dense measured faster, by the nearest measured layer.",
    ]
    for group in dict.fromkeys(entry.group for entry in found):
        entries = [entry for entry in found if entry.group == group]
        rows = [[entry.layer, str(BreakEven(entry.bound, entry.sparsity))] for entry in entries]
        sources = list(dict.fromkeys(entry.source for entry in entries))
        paragraphs += [
            f"## {group}",
            report.table(["sparse is faster from", "sparsity"], rows),
            "From " + "; ".join(sources) + ".",
        ]
    if not any(entry.device == "cuda" for entry in found):
        paragraphs += ["## GPUs", "Not measured on a GPU yet."]
    return tables.page(paragraphs)
