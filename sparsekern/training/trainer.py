"""One run in memory: its step, its epoch's end, and its whole state as a tree."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.data import BatchLoader
from sparsekern.growth import find_sparse_layers
from sparsekern.training.build import build_data, build_growth, build_model, build_optimizer, build_scheduler
from sparsekern.training.checkpoint import CheckpointError
from sparsekern.training.config import TrainConfig
from sparsekern.training.topology import build_topology

EVALUATION_BATCH = 512


@dataclass
class Totals:
    """Sums over the steps of the epoch so far."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    replaced: int = 0


class Trainer:
    """Builds all that `config` names. The caller iterates `loader`, calls `train_step` and ends epochs.

    Args:
        config: of the run.
        model: a network to train as it is, in the place of the one that `config` names.
        restoring: whether a checkpoint will be loaded. A mask file is then not read: the checkpoint has the topology.
    """

    def __init__(self, config: TrainConfig, model: nn.Module | None = None, *, restoring: bool = False) -> None:
        self.config = config
        self.device = torch.device(config.run.device)
        dtype = getattr(torch, config.run.dtype)
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.autocast_dtype = dtype if dtype in (torch.bfloat16, torch.float16) else None
        seeds = torch.randint(2**62, (4,), generator=torch.Generator().manual_seed(config.run.seed)).tolist()
        model_seed, topology_seed, growth_seed, loader_seed = seeds
        torch.manual_seed(model_seed)

        self.data = build_data(config.data).to(self.device, self.dtype)
        self.loader = BatchLoader(
            self.data.train_images,
            self.data.train_labels,
            config.data.batch_size,
            seed=loader_seed,
            shift=config.data.shift,
            fill=self.data.background,
        )
        self.total_steps = config.run.epochs * len(self.loader)
        self.model = build_model(config.model, self.data) if model is None else model
        if model is None and not config.sparsity.is_dense:
            generator = torch.Generator().manual_seed(topology_seed)
            build_topology(config.sparsity, self.model, generator, restoring=restoring)
        self.model.to(self.device, self.dtype)
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.scheduler = build_scheduler(config.optimizer, self.optimizer, self.total_steps, len(self.loader))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype == torch.float16)
        self.growth = None
        if not config.sparsity.is_dense:
            self.growth = build_growth(config.growth, self.model, self.optimizer, self.total_steps, growth_seed)
        self.nnz = sum(layer.nnz for layer in find_sparse_layers(self.model).values())
        self.epoch, self.step, self.totals = 0, 0, Totals()

    def train_step(self, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        """One optimizer step. Returns a row a layer if the topology changed."""
        started = time.perf_counter()
        logits = self.predict(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.optimizer.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        updates = [] if self.growth is None else self.growth.step()
        self.scheduler.step()
        self.step += 1
        self.totals.loss += loss.item() * len(images)
        self.totals.correct += int((logits.argmax(dim=1) == labels).sum())
        self.totals.images += len(images)
        self.totals.replaced += sum(update.replaced for update in updates)
        self.totals.seconds += time.perf_counter() - started
        # The growth counts the optimizer's real steps; the files count the trainer's, skipped ones too.
        return [asdict(update) | {"step": self.step} for update in updates]

    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, classes) in float32, or float64 where that is the run's dtype."""
        with self.precision():
            logits = self.model(images)
        return logits.to(self.dtype)

    def precision(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def finish_epoch(self) -> dict[str, Any]:
        """Tests the model and returns the epoch's row of metrics. Raises FloatingPointError if the loss diverged."""
        totals, self.totals = self.totals, Totals()
        self.epoch += 1
        loss = totals.loss / totals.images
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss of epoch {self.epoch} is {loss}: the run diverged; try a lower --lr or a warm-up"
            )
        test_loss, test_accuracy = self.evaluate()
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": loss,
            "train_accuracy": totals.correct / totals.images,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "lr": self.scheduler.get_last_lr()[0],
            "seconds": totals.seconds,
            "replaced_share": totals.replaced / max(1, self.nnz),
        }

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """(mean loss, share of right answers) over the test images."""
        self.model.eval()
        images, labels = self.data.test_images, self.data.test_labels
        logits = torch.cat([self.predict(batch) for batch in images.split(EVALUATION_BATCH)])
        self.model.train()
        return F.cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).double().mean().item()

    def state_dict(self) -> dict[str, Any]:
        """All that the coming steps depend on."""
        return {
            "config": self.config.to_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "growth": None if self.growth is None else self.growth.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": rng_state(self.device),
            "progress": {"epoch": self.epoch, "step": self.step, "totals": asdict(self.totals)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for the state of another run, or one whose parts do not fit."""
        differences = TrainConfig.from_dict(state["config"]).differences(self.config)
        if differences:
            option, (theirs, mine) = next(iter(differences.items()))
            raise CheckpointError(f"it is of another run: its {option} is {theirs!r}, here it is {mine!r}")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            if self.growth is not None:
                self.growth.load_state_dict(state["growth"])
            self.loader.load_state_dict(state["loader"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"its contents do not fit this run: {error}") from error
        set_rng_state(self.device, state["rng"])
        progress = state["progress"]
        self.epoch, self.step, self.totals = progress["epoch"], progress["step"], Totals(**progress["totals"])


def rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(device: torch.device, state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
