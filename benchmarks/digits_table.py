"""Accuracy on digits of every growth method, at two densities, over five seeds, beside the dense network.

    python benchmarks/digits_table.py [--runs runs/digits-table] [--processes 2]

Each run is one `sparsekern train` on one thread, well under 30 s on a current core. Finished runs are kept in the
runs folder and skipped, begun ones resumed, so that a killed table goes on where it was. Writes the figures to
docs/digits.json and from that file docs/digits.md.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ["--model", "resnet", "--depth", "8", "--width", "16", "--epochs", "80", "--interval", "40"]
METHODS = ("static", "set", "rigl", "gse-uniform", "gse-grabo", "gse-graest")
DENSITIES = (0.05, 0.02)
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Run:
    """One training run of the table."""

    method: str
    density: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.density:g}-{self.seed}"

    def options(self) -> list[str]:
        if self.method == "dense":
            return ["--dense"]
        return ["--growth", self.method, "--density", str(self.density)]


def all_runs() -> list[Run]:
    sparse = [Run(method, density, seed) for seed in SEEDS for density in DENSITIES for method in METHODS]
    return [*(Run("dense", 1.0, seed) for seed in SEEDS), *sparse]


def train(run: Run, runs: Path) -> dict[str, Any]:
    """The run's summary, from its folder if it is finished there."""
    folder = runs / run.name
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "sparsekern", "train"]
    if (folder / "checkpoint.safetensors").exists():
        command += ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += [*RECIPE, *run.options(), "--seed", str(run.seed), "--threads", "1", "--no-plots"]
        command += ["--output", str(folder)]
    if not summary.exists():
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return json.loads(summary.read_text())
