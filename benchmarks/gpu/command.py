"""`python -m benchmarks gpu`: runs the sections that are asked for, and has each one's file on disk as it grows."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import cases, ceilings, counters, layers, networks, place
from benchmarks.gpu.clock import Clock, Fault, clock_of, first_line
from benchmarks.gpu.options import Gpu, folder, parse
from sparsekern.atomic import replace_file


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 where a section ended before its time or there is no GPU."""
    options = parse(arguments)
    try:
        device = place.device_of(options.device)
    except RuntimeError as error:
        print(f"benchmarks gpu: {error}", file=sys.stderr)
        return 1
    target = folder(place.name_of(device), options.smoke, options.output)
    target.mkdir(parents=True, exist_ok=True)
    clock = clock_of(device)
    end = time.monotonic() + options.budget
    failed = False
    for index, section in enumerate(options.sections):
        now = time.monotonic()
        deadline = now + (end - now) / (len(options.sections) - index)
        failed |= not measure(section, options, arguments, device, clock, deadline, target)
    return int(failed)


def measure(
    section: str,
    options: Gpu,
    arguments: Sequence[str],
    device: torch.device,
    clock: Clock,
    deadline: float,
    target: Path,
) -> bool:
    """Runs a section into `target`/`section`.json. Returns whether it came to its end."""
    result: dict[str, Any] = {
        "benchmark": f"gpu {section}",
        "command": shlex.join(["python", "-m", "benchmarks", "gpu", *without_output(arguments)]),
        "date": date.today().isoformat(),
        "machine": place.describe(device, options.commit),
        "device": device.type,
        "smoke": options.smoke,
        "rounds": options.rounds,
        "seed": options.seed,
        "ended": None,
        "entries": [],
    }
    # Single convolutions have cudnn try all its ways; in whole networks that would take most of the time.
    torch.backends.cudnn.benchmark = section == "convolutions"
    path, began = target / f"{section}.json", time.monotonic()
    try:
        for entry in entries(section, options, device, clock, deadline):
            result["entries"].append(entry)
            save(path, result)
        result["ended"] = "whole"
    except KeyboardInterrupt:
        result["ended"] = "interrupted"
        raise
    except Fault as error:
        result["ended"], result["fault"] = f"failed: {error}", error.backend
        print(f"benchmarks gpu {section}: {result['ended']}", file=sys.stderr)
    except Exception as error:
        # What comes after a fault of the GPU would fail as well; other sections have processes of their own.
        result["ended"] = f"failed: {type(error).__name__}: {first_line(error)}"
        print(f"benchmarks gpu {section}: {result['ended']}", file=sys.stderr)
    finally:
        result["seconds"] = round(time.monotonic() - began, 1)
        save(path, result)
    print(f"{section}: {result['ended']}, {result['seconds']:g} s, {path}", flush=True)
    return result["ended"] == "whole"


def entries(
    section: str, options: Gpu, device: torch.device, clock: Clock, deadline: float
) -> Iterator[dict[str, Any]]:
    shapes = {
        "layers": cases.SMOKE_LINEAR if options.smoke else cases.LINEAR,
        "convolutions": cases.SMOKE_CONVOLUTIONS if options.smoke else cases.CONVOLUTIONS,
    }
    if section in shapes:
        return layers.measure(shapes[section], options, device, clock, deadline)
    module = {"networks": networks, "ceilings": ceilings, "counters": counters}[section]
    return module.measure(options, device, clock, deadline)


def save(path: Path, result: dict[str, Any]) -> None:
    replace_file(path, lambda aside: aside.write_text(json.dumps(result, indent=1) + "\n"))


def without_output(arguments: Sequence[str]) -> list[str]:
    """The command line that a result says: where it was written to is not part of it."""
    kept, skipped = [], False
    for word in arguments:
        if word == "--output" or skipped:
            skipped = word == "--output"
        elif not word.startswith("--output="):
            kept.append(word)
    return kept
