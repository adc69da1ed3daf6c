"""A run's TensorBoard event files. tensorboard is an extra: without it there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# metrics.csv's columns by their TensorBoard names; one chart holds what shares the part before the slash.
EPOCH_TAGS = {
    "loss": "loss/train",
    "dev_loss": "loss/dev",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "dev_accuracy": "accuracy/dev",
    "test_accuracy": "accuracy/test",
    "lr": "run/lr",
    "seconds": "run/seconds_of_epoch",
    "replaced_share": "run/replaced_share",
    "grad_norm": "run/grad_norm",
}
UPDATE_COLUMNS = ("survived", "first", "fan_in_max", "fan_out_max", "dead_rows", "dead_columns", "grad_norm")


def is_tensorboard_there() -> bool:
    """Whether it can be imported: one that is installed but broken stops no run that did not ask for it."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        return False
    return True


def wants_board(asked: bool | None) -> bool:
    """Whether event files are written: as asked, and where nothing was, if tensorboard is installed.

    Raises ImportError where they are asked for and cannot be.
    """
    if asked is False:
        return False
    there = is_tensorboard_there()
    if asked and not there:
        raise ImportError("--tensorboard needs tensorboard: pip install 'sparsekern[tensorboard]'")
    return there


class Board:
    """Event files in `path`, going on after `step`: what a run wrote after the checkpoint it resumes from is hidden."""

    def __init__(self, path: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(path), purge_step=step + 1 if step else None)

    def epoch(self, metrics: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> None:
        step = metrics["step"]
        for column, tag in EPOCH_TAGS.items():
            self.scalar(tag, metrics[column], step)
        for layer in layers:
            self.scalar(f"grad_norm/{layer['layer']}", layer["grad_norm"], step)
            self.scalar(f"weight_norm/{layer['layer']}", layer["weight_norm"], step)
        self.writer.flush()

    def update(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self.scalar(f"replaced/{row['layer']}", row["replaced"] / max(1, row["nnz"]), row["step"])
            for column in UPDATE_COLUMNS:
                tag = "grad_norm_at_update" if column == "grad_norm" else column
                self.scalar(f"{tag}/{row['layer']}", row[column], row["step"])

    def resources(self, row: Mapping[str, Any]) -> None:
        for column in ("resident", "resident_peak", "device", "device_peak"):
            self.scalar(f"memory/{column}", row[column], row["step"])
        if row["what"] == "update":
            self.scalar("run/seconds_of_update", row["seconds"], row["step"])

    def scalar(self, tag: str, value: float | str | None, step: int) -> None:
        if value is not None and value != "":
            self.writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self.writer.close()
