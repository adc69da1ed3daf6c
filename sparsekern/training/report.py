"""What a finished run amounts to: its summary.json and the table on the screen."""

from __future__ import annotations

import copy
import platform
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sparsekern.nn import SparseLayer
from sparsekern.training.folder import RunFolder
from sparsekern.training.memory import measure_memory
from sparsekern.training.metrics import read_csv
from sparsekern.training.trainer import Trainer

ACCURACY, COUNT, TIME = "test accuracy", "weights that exist", "time a step"
AT_BEST, DEV = "test accuracy at the best dev epoch", "dev accuracy"
ACCURACIES = (ACCURACY, AT_BEST, DEV)
MEMORY_LINES = {
    "weights": "weights",
    "indices": "indices",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "other_parameters": "biases and norms",
    "buffers": "norm statistics",
    "average": "average of the weights",
    "origins": "where edges come from",
    "total": "all of these",
}
OPTIONAL_LINES = ("average", "origins")


def summarise(trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """Accuracy, sizes, memory and time of a finished run, as plain values."""
    epochs = read_csv(folder.metrics.path)
    layers = describe_layers(trainer.model)
    average = None if trainer.average is None else trainer.average.model
    memory, dense_memory = measure_memory(trainer.model, trainer.optimizer, average)
    if trainer.observer is not None:
        memory.origins = trainer.observer.nbytes
    return {
        "label": trainer.config.label,
        "dense": trainer.config.sparsity.is_dense,
        "steps": trainer.step,
        "train_accuracy": float(epochs[-1]["train_accuracy"]),
        "test_accuracy": float(epochs[-1]["test_accuracy"]),
        "test_loss": float(epochs[-1]["test_loss"]),
        "best_dev": best_dev(epochs) if trainer.data.has_dev else None,
        "seconds_per_step": sum(float(row["seconds"]) for row in epochs) / trainer.step,
        "nnz": sum(layer["nnz"] for layer in layers),
        "dense_weights": sum(layer["weights"] for layer in layers),
        "layers": layers,
        "memory": asdict(memory) | {"total": memory.total},
        "dense_memory": asdict(dense_memory) | {"total": dense_memory.total},
        "activations": measure_activations(trainer),
        "batch_size": trainer.config.data.batch_size,
        "processes": trainer.processes.count,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": str(trainer.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsekern": import_module("sparsekern").__version__,
    }


def best_dev(epochs: list[dict[str, str]]) -> dict[str, float]:
    """The epoch of the highest dev accuracy, the first of equal ones, and its accuracies; and the last dev accuracy."""
    best = max(epochs, key=lambda row: float(row["dev_accuracy"]))
    return {
        "epoch": int(best["epoch"]),
        "dev_accuracy": float(best["dev_accuracy"]),
        "test_accuracy": float(best["test_accuracy"]),
        "last_dev_accuracy": float(epochs[-1]["dev_accuracy"]),
    }


def describe_layers(model: nn.Module) -> list[dict[str, Any]]:
    """Each linear and convolutional layer: its name, how many weights exist and how many would if it were dense."""
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            weights = module.matrix_shape[0] * module.matrix_shape[1]
            layers.append({"name": name, "nnz": module.nnz, "weights": weights, "sparse": True})
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            weights = module.weight.numel()
            layers.append({"name": name, "nnz": weights, "weights": weights, "sparse": False})
    return layers


def measure_activations(trainer: Trainer) -> int:
    """Bytes that one training batch's forward keeps for its backward, parameters and buffers apart."""
    model = copy.deepcopy(trainer.model)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = trainer.loader.peek()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), trainer.precision():
        logits = model(images)
    del logits
    return sum(kept.values())


def print_report(console: Console, summary: dict[str, Any], twin: dict[str, Any] | None) -> None:
    """The closing table; `twin` is the summary of the dense twin, if it was trained."""
    if summary["dense"]:
        console.print(make_table(summary["label"], {"dense": figures(summary, summary["memory"])}))
        return
    dense = computed_twin(summary) if twin is None else figures(twin, twin["memory"])
    columns = {"sparse": figures(summary, summary["memory"]), "dense twin": dense}
    console.print(make_table(summary["label"], columns))
    if twin is None:
        console.print("The twin's memory is computed. --twin trains it too, for its accuracy and time.")


def figures(summary: dict[str, Any], memory: dict[str, int]) -> dict[str, float]:
    """Line of the table: number."""
    accuracies = {ACCURACY: summary["test_accuracy"]}
    if best := summary["best_dev"]:
        accuracies |= {DEV: best["last_dev_accuracy"], AT_BEST: best["test_accuracy"]}
    return {
        **accuracies,
        COUNT: summary["nnz"],
        **{line: memory[key] for key, line in MEMORY_LINES.items() if key not in OPTIONAL_LINES or memory[key]},
        f"activations, batch of {summary['batch_size']}": summary["activations"],
        TIME: summary["seconds_per_step"],
    }


def computed_twin(summary: dict[str, Any]) -> dict[str, float]:
    """What is known of the dense twin without training it."""
    known = figures({**summary, "nnz": summary["dense_weights"]}, summary["dense_memory"])
    return {line: known[line] for line in (COUNT, *MEMORY_LINES.values()) if line in known}


def make_table(title: str, columns: dict[str, dict[str, float]]) -> Table:
    """A line a figure, a column a network, and with two networks their ratio (difference for accuracy)."""
    table = Table(title=title)
    table.add_column("")
    for heading in (*columns, "sparse / dense") if len(columns) == 2 else columns:
        table.add_column(heading, justify="right", no_wrap=True)
    first, *others = columns.values()
    lasting = [line for line in first if line in ACCURACIES][-1]
    for line, number in first.items():
        cells = [show(line, column[line]) if line in column else "" for column in columns.values()]
        if others:
            cells.append(compare(line, number, others[0][line]) if line in others[0] else "")
        table.add_row(line, *cells, end_section=line == lasting or line == MEMORY_LINES["total"])
    return table


def show(line: str, number: float) -> str:
    if line in ACCURACIES:
        return f"{number:.2%}"
    if line == TIME:
        return f"{1000 * number:.1f} ms"
    return f"{number:,}" if line == COUNT else show_bytes(number)


def compare(line: str, sparse: float, dense: float) -> str:
    if line in ACCURACIES:
        return f"{100 * (sparse - dense):+.2f} points"
    return f"{sparse / dense:.3f}" if dense else ""


def show_bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} GiB"
