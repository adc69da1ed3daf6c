"""A run's folder: config.json, checkpoints, the CSV files, summary.json and the plots."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparsekern.atomic import remove_unfinished, replace_file, sync
from sparsekern.growth import ObservedUpdate
from sparsekern.training.checkpoint import CheckpointError, load_checkpoint
from sparsekern.training.checkpoints import Checkpoints
from sparsekern.training.config import TrainConfig
from sparsekern.training.lock import NAME as LOCK
from sparsekern.training.lock import hold, let_go
from sparsekern.training.metrics import CsvLog
from sparsekern.training.nonfinite import check_finite
from sparsekern.training.trainer import Trainer

METRICS = (
    "step",
    "epoch",
    "loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "seconds",
    "replaced_share",
    "dev_loss",
    "dev_accuracy",
    "grad_norm",
)
TOPOLOGY = tuple(each.name for each in fields(ObservedUpdate))
LAYERS = ("step", "epoch", "layer", "grad_norm", "weight_norm")
RESOURCES = ("step", "what", "seconds", "step_seconds", "resident", "resident_peak", "device", "device_peak")


class RunFolder:
    """The files of one run.

    metrics.csv has a row an epoch, layers.csv one a layer and epoch, topology.csv one a layer and update, resources.csv
    one for each update and epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoints = Checkpoints(path)
        self.checkpoint = self.checkpoints.newest
        self.summary = path / "summary.json"
        self.metrics = CsvLog(path / "metrics.csv", METRICS)
        self.topology = CsvLog(path / "topology.csv", TOPOLOGY)
        self.layers = CsvLog(path / "layers.csv", LAYERS)
        self.resources = CsvLog(path / "resources.csv", RESOURCES)
        self.logs = self.metrics, self.topology, self.layers, self.resources

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """A new folder with the run's config.json, held by this process.

        Raises FileExistsError rather than write into a used one, FolderInUse for one where another process is at work.
        """
        path = config.run.output
        if path is None:
            path = make_unused(Path("runs") / config.label)
        elif path.exists() and not path.is_dir():
            raise FileExistsError(f"output {path} is a file: --output names a folder")
        else:
            path.mkdir(parents=True, exist_ok=True)
        hold(path)
        if any(each.name != LOCK for each in path.iterdir()):
            let_go(path)
            raise FileExistsError(f"output {path} exists: --resume {path} continues it, another --output starts anew")
        folder = cls(path)
        write_json(folder.config, config.to_dict())
        return folder

    def hold(self, patience: float = 0.0) -> None:
        """Keeps other processes from writing here, as `lock.hold` does, with what that raises.

        A folder that is not there stays so: `create` makes it, and holds it.
        """
        if self.path.is_dir():
            hold(self.path, patience)

    def holds_run(self, patience: float = 0.0) -> bool:
        """Whether there is a run to resume; one that was killed before its first checkpoint is cleared away.

        Holds the folder first, as `hold` does, with what that raises.
        """
        self.hold(patience)
        if self.checkpoints.exist():
            return True
        remove_unfinished(self.path)
        self.config.unlink(missing_ok=True)
        return False

    def load_config(self) -> TrainConfig:
        """Raises FileNotFoundError where there is no run, ValueError for a config.json that cannot be read."""
        if not self.config.is_file():
            raise FileNotFoundError(f"no run at {self.path}: it has no config.json")
        try:
            return TrainConfig.from_dict(json.loads(self.config.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.config} cannot be read: {error}") from error

    def save(self, trainer: Trainer) -> None:
        """Raises OSError where it cannot, FloatingPointError for weights that are not finite.

        The newest checkpoint then is what it was. Of several processes all call it, the first one writes, and the
        others wait for it: torchrun ends what is still at work once one has ended. They raise FirstFailed.
        """
        check_finite(trainer.model)
        state = trainer.state_dict()

        def write() -> None:
            for log in self.logs:  # what the checkpoint says was done is then on record too
                if log.path.exists():
                    sync(log.path)
            self.checkpoints.save(state, trainer.step, trainer.config.run.keep)

        trainer.processes.first(write)

    def load(self, trainer: Trainer) -> None:
        """Brings `trainer` to the newest checkpoint, and no other. Raises FileNotFoundError or CheckpointError."""
        take(trainer, self.checkpoint, load_checkpoint(self.checkpoint))

    def restore(self, trainer: Trainer) -> None:
        """Brings `trainer` to the newest checkpoint that can be read, and the CSVs back to its step.

        Removes what a killed save left. Warns where an earlier checkpoint stands in for a damaged one. Of several
        processes the first one says which, and holds the folder from then on. Raises FileNotFoundError, CheckpointError
        or FolderInUse.
        """
        found: list[tuple[Path, dict[str, Any]]] = []

        def find() -> Path:
            self.hold()
            found.append(self.checkpoints.find())
            return found[0][0]

        path = trainer.processes.first(find)
        take(trainer, path, found[0][1] if found else load_checkpoint(path))
        if not trainer.processes.leads:
            return
        remove_unfinished(self.path)
        for log in self.logs:
            log.cut(trainer.step, trainer.epoch * len(trainer.loader))

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.summary, summary)

    def load_summary(self) -> dict[str, Any]:
        return json.loads(self.summary.read_text())


def take(trainer: Trainer, path: Path, state: dict[str, Any]) -> None:
    try:
        trainer.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def make_unused(path: Path) -> Path:
    """Makes `path`, or the first of path-2, path-3, ... that does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir()
        except FileExistsError:  # maybe just now, by a job that was started together with this one
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        else:
            return candidate


def write_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, lambda aside: aside.write_text(json.dumps(content, indent=2) + "\n"))
