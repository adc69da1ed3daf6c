"""Runs one measurement in a process of its own, which may take only so much memory and time.

`python -m benchmarks.fresh` is that process: it reads a request on standard input and answers on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import process

ROOT = Path(__file__).resolve().parents[1]


def call(
    function: str, arguments: dict[str, Any], *, threads: int, gibibytes: float, seconds: float, keep_freed: bool
) -> dict[str, Any]:
    """What `function`, "module.name" of this package, returns in a fresh process, or {"failed": why}.

    Args:
        function: takes `arguments` as keywords and returns a dict that JSON can hold.
        arguments: as JSON.
        threads: of torch and of every library.
        gibibytes: of private memory that the process may have; an allocation beyond fails.
        seconds: after which it is stopped.
        keep_freed: whether freed memory stays with the process (for times) or is given back at once (for memory).
    """
    request = {
        "function": function,
        "arguments": arguments,
        "threads": threads,
        "bytes": int(gibibytes * 2**30),
        "keep_freed": keep_freed,
    }
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    try:
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.fresh"],
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {seconds:g} s"}
    if result.returncode:
        return {"failed": _reason(result.stderr, gibibytes)}
    return json.loads(result.stdout.splitlines()[-1])


def _reason(errors: str, gibibytes: float) -> str:
    if "can't allocate memory" in errors or "MemoryError" in errors or "bad_alloc" in errors:
        return f"needs more than {gibibytes:g} GiB"
    return (errors.strip().splitlines() or ["the process died"])[-1]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Serves one request, in this process."""
    process.limit_memory(request["bytes"])
    (process.keep_freed_memory if request["keep_freed"] else process.return_freed_memory)()
    module, name = request["function"].rsplit(".", 1)

    import torch

    torch.set_num_threads(request["threads"])
    return getattr(importlib.import_module(f"benchmarks.{module}"), name)(**request["arguments"])


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
