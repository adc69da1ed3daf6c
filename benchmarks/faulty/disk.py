"""A run on a disk that fills up: a tmpfs, mounted in a namespace of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fresh import ROOT
from sparsekern.commands.train import train
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.checkpoints import Checkpoints

TRAIN = ("--model", "resnet", "--width", "8", "--depth", "8", "--epochs", "3", "--batch-size", "256", "--threads", "1")
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8m none "$0" && exec "$@"')


def full(seed: int) -> dict[str, Any]:
    """What `on_small_disk` finds, or {"failed": why} where no tmpfs can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [*NAMESPACE, folder, sys.executable, "-m", "benchmarks.faulty.disk", folder, str(seed)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
            capture_output=True,
            text=True,
        )
    if result.returncode:
        return {"failed": (result.stderr.strip().splitlines() or ["no tmpfs"])[-1]}
    return json.loads(result.stdout.splitlines()[-1])


def on_small_disk(disk: Path, seed: int) -> dict[str, Any]:
    """Fills the disk after a run's first epochs, goes on with the run, frees the disk, and goes on again."""
    run = disk / "run"
    words = [*TRAIN, "--seed", str(seed), "--no-plots", "--keep", "1"]
    train_quietly([*words, "--output", str(run), "--stop-after", "10"])
    checkpoints = Checkpoints(run)
    before = checkpoints.newest.read_bytes()
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - len(before) // 2))
    code, message = train_quietly(["--resume", str(run), "--stop-after", "1000"])
    after = checkpoints.newest.read_bytes()
    left = sorted(path.name for path in run.iterdir())
    filler.unlink()
    again, _ = train_quietly(["--resume", str(run), "--stop-after", "1000"])
    train_quietly([*words, "--output", str(disk / "whole")])
    weights = [load_checkpoint(disk / name / "checkpoint.safetensors")["model"] for name in ("run", "whole")]
    return {
        "bytes": len(before),
        "exit_code": code,
        "message": message.replace(str(disk), "DISK"),
        "old_file_stays": before == after,
        "left": left,
        "exit_code_with_space": again,
        "same_final_weights": all((value == weights[1][name]).all().item() for name, value in weights[0].items()),
    }


def train_quietly(words: list[str]) -> tuple[int, str]:
    """(exit code, last line of what went to standard error)."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = train(words)
    return code, (errors.getvalue().strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    print(json.dumps(on_small_disk(Path(sys.argv[1]), int(sys.argv[2]))))
