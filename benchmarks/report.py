"""What every measurement writes: a JSON file, the same as a page of tables, and where it ran."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.options import command_line
from sparsekern import tables


def begin(benchmark: str, options: Any) -> dict[str, Any]:
    """A report's first entries: what was measured, by which command, when and on what."""
    return {
        "benchmark": benchmark,
        "command": command_line(benchmark, options),
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "threads": options.threads,
        "seed": options.seed,
    }


def where(report: dict[str, Any]) -> str:
    """A paragraph that says where and when a report was made."""
    on = report["machine"]
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in on["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    return (
        f"Made by `{report['command']}` on {report['date']} at commit {on['commit']}: {on['processor']}, {on['cores']} "
        f"cores, {on['memory_gib']:g} GiB memory{', ' + caches if caches else ''}; {report['threads']} thread(s); "
        f"sparsekern's {on['instruction_set']} kernels, torch's {on['torch_capability']}; Python {on['python']}, "
        f"{versions}; seed {report['seed']}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, its first `left` columns left-aligned and the others right-aligned."""
    return tables.markdown([header, *rows], [column >= left for column in range(len(header))])


def write(report: dict[str, Any], page: str, folder: Path, name: str) -> None:
    """Writes `name`.json and `name`.md, and prints the page."""
    save(report, page, folder, name)
    print(page)
    print(f"written to {folder / name}.json and .md", flush=True)


def save(report: dict[str, Any], page: str, folder: Path, name: str) -> None:
    """Writes `name`.json and `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)
