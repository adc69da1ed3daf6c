"""Resident memory of a process that trains for many steps."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import resident
from benchmarks.fresh import ROOT
from sparsekern.training.config import DataConfig, GrowthConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from sparsekern.training.run import start
from sparsekern.training.trainer import Trainer

FIRST = 1000  # steps after which memory must no longer grow
INTERVAL = 50
NETWORKS = {
    "resnet, gse-grabo, sgd": (ModelConfig("resnet", width=8, depth=8), "gse-grabo", "sgd"),
    "vit, gse-graest, adamw": (ModelConfig("vit", width=32, depth=2, heads=2, patch=4), "gse-graest", "adamw"),
}


def grow(steps: int, seed: int) -> dict[str, Any]:
    """Memory of each network over `steps` steps, each in a process of its own with the C library's own malloc."""
    return {name: in_process(name, steps, seed) for name in NETWORKS}


def in_process(name: str, steps: int, seed: int) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.faulty.steps", name, str(steps), str(seed)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        return {"failed": (result.stderr.strip().splitlines() or ["the process died"])[-1]}
    return json.loads(result.stdout.splitlines()[-1])


def config(name: str, seed: int, output: Path) -> TrainConfig:
    model, growth, optimizer = NETWORKS[name]
    return TrainConfig(
        model=model,
        data=DataConfig(batch_size=64),
        growth=GrowthConfig(growth, interval=INTERVAL, end=1.0),
        optimizer=OptimizerConfig(optimizer, lr=0.01 if optimizer == "sgd" else 1e-3),
        run=RunConfig(seed=seed, threads=1, output=output),
    )


def measure(name: str, steps: int, seed: int) -> dict[str, Any]:
    """Trains, tests and saves as `sparsekern train` does, and notes resident memory every FIRST steps."""
    with tempfile.TemporaryDirectory() as folder:
        plan = config(name, seed, Path(folder) / "run")
        epochs = -(-steps // len(Trainer(plan).loader))
        trainer, run = start(dataclasses.replace(plan, run=dataclasses.replace(plan.run, epochs=epochs)))
        memory: list[int] = []
        tensors: list[int] = []
        updates = 0
        while trainer.step < steps:
            for images, labels in trainer.batches():
                rows = trainer.train_step(images, labels)
                run.topology.append(rows)
                updates += bool(rows)
                if trainer.step % FIRST == 0:
                    memory.append(resident.now())
                    tensors.append(live_tensors())
                if trainer.step == steps:
                    break
            else:
                run.metrics.append([trainer.finish_epoch()])
                if trainer.epoch % 20 == 0:
                    run.save(trainer)
    return {
        "steps": steps,
        "updates": updates,
        "saves": trainer.epoch // 20,
        "bytes_every_1000_steps": memory,
        "tensors_every_1000_steps": tensors,
        "growth": memory[-1] / memory[0] - 1,
    }


def live_tensors() -> int:
    """How many there are that Python knows of, garbage apart."""
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
