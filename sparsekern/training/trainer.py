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

from sparsekern.data.images import Split
from sparsekern.growth import Observer, find_sparse_layers
from sparsekern.tost import LrsiReport, lrsi, smoothed_cross_entropy
from sparsekern.tost.smoothing import check_smoothing
from sparsekern.training.average import WeightAverage
from sparsekern.training.build import (
    build_data,
    build_growth,
    build_loader,
    build_model,
    build_optimizer,
    build_scheduler,
    build_tost,
)
from sparsekern.training.checkpoint import CheckpointError
from sparsekern.training.config import TrainConfig
from sparsekern.training.mixing import build_mixing
from sparsekern.training.norms import measure_norms
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
        seeds = torch.randint(2**62, (5,), generator=torch.Generator().manual_seed(config.run.seed)).tolist()
        model_seed, topology_seed, growth_seed, loader_seed, tost_seed = seeds
        torch.manual_seed(model_seed)

        self.data = build_data(config.data).to(self.device, self.dtype)
        check_smoothing(config.optimizer.label_smoothing, config.optimizer.label_smoothing_over, self.data.classes)
        self.loader = build_loader(config.data, self.data, loader_seed)
        self.mixing = build_mixing(config.data, self.data.classes, config.run.seed)
        self.total_steps = config.run.epochs * len(self.loader)
        if model is None:
            # A sparse network's dense weights are never held: it comes to be on the meta device, and to be real sparse.
            with torch.device("cpu" if config.sparsity.is_dense else "meta"):
                model = build_model(config.model, self.data)
            if not config.sparsity.is_dense:
                generator = torch.Generator().manual_seed(topology_seed)
                build_topology(config.sparsity, model, generator, restoring=restoring)
        self.model = model
        self.model.to(self.device, self.dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype == torch.float16)
        self.optimizer = build_optimizer(config.optimizer, self.model, scaled=self.scaler.is_enabled())
        self.scheduler = build_scheduler(config.optimizer, self.optimizer, self.total_steps, len(self.loader))
        self.growth = None
        if not config.sparsity.is_dense:
            self.growth = build_growth(config.growth, self.model, self.optimizer, self.total_steps, growth_seed)
        self.observer = None if self.growth is None else Observer(self.growth)
        self.tost = build_tost(config.tost, self.model, self.optimizer, self.total_steps, tost_seed)
        self.average: WeightAverage | None = None
        if config.optimizer.ema and self.tost is None:
            self.begin_average()
        self.nnz = sum(layer.nnz for layer in find_sparse_layers(self.model).values())
        self.epoch, self.step, self.totals = 0, 0, Totals()
        self.norms: dict[str, Any] = {"grad_norm": None, "layers": {}}  # at the last epoch's last step
        self.step_seconds = 0.0

    def train_step(self, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        """One optimizer step. Returns a row a layer if the topology changed."""
        started = time.perf_counter()
        options = self.config.optimizer
        images, targets = (images, labels) if self.mixing is None else self.mixing(images, labels, self.step)
        logits = self.predict(images)
        loss = smoothed_cross_entropy(logits, targets, options.label_smoothing, options.label_smoothing_over)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if options.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained(), options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        if (self.step + 1) % len(self.loader) == 0:  # before an update moves the gradients
            self.norms = measure_norms(self.model, self.trained())
        updates = [] if self.observer is None else self.observer.step()
        if self.tost is not None:
            self.tost.step()
            if options.ema and self.average is None and self.tost.over:
                self.begin_average()
        self.scheduler.step()
        self.step += 1
        self.totals.loss += loss.item() * len(images)
        # Of a mixed image, the class that most of it is from.
        classes = targets if targets.dim() == 1 else targets.argmax(dim=1)
        self.totals.correct += int((logits.argmax(dim=1) == classes).sum())
        self.totals.images += len(images)
        self.totals.replaced += sum(update.replaced for update in updates)
        self.step_seconds = time.perf_counter() - started
        self.totals.seconds += self.step_seconds
        # The growth counts the optimizer's real steps; the files count the trainer's, skipped ones too.
        return [asdict(update) | {"step": self.step} for update in updates]

    def trained(self) -> list[nn.Parameter]:
        """All that the optimizer steps on: the network's parameters, and the ghosts' while there are any."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def rescale(self) -> LrsiReport | None:
        """What comes before the first step, where the run's configuration asks for it: `lrsi` on training batches."""
        if not self.config.tost.lrsi or self.step > 0:
            return None
        before = self.loader.state_dict()
        report = lrsi(self.model, self.loader, iterations=self.config.tost.lrsi_iterations)
        self.loader.load_state_dict(before)
        return report

    def begin_average(self) -> WeightAverage:
        """From the next step on, the weights are averaged; the network must keep its modules from here on."""
        self.average = WeightAverage(self.model, self.config.optimizer.ema)
        if self.growth is not None:
            self.growth.follow(self.average.model)
        return self.average

    @property
    def evaluated(self) -> nn.Module:
        """The network that is tested: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.model

    def predict(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Logits (B, classes) in float32, or float64 where that is the run's dtype."""
        with self.precision():
            logits = (self.model if model is None else model)(images)
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
        dev_loss, dev_accuracy = self.evaluate("dev") if self.data.has_dev else ("", "")
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
            "dev_loss": dev_loss,
            "dev_accuracy": dev_accuracy,
            "grad_norm": self.norms["grad_norm"],
        }

    def layer_rows(self) -> list[dict[str, Any]]:
        """A row a layer: 2-norms of its weight's gradient and its weight, at the last step of the last epoch."""
        place = {"step": self.step, "epoch": self.epoch}
        return [
            place | {"layer": name, "grad_norm": grad, "weight_norm": weight}
            for name, (grad, weight) in self.norms["layers"].items()
        ]

    @torch.no_grad()
    def evaluate(self, split: Split = "test") -> tuple[float, float]:
        """(mean loss, share of right answers) over the test or the dev images."""
        model = self.evaluated
        was_training = model.training
        model.eval()
        batches = [
            (self.predict(images, model), labels) for images, labels in self.data.batches(split, EVALUATION_BATCH)
        ]
        model.train(was_training)
        logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
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
            "observer": None if self.observer is None else self.observer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "tost": None if self.tost is None else self.tost.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": rng_state(self.device),
            "progress": {"epoch": self.epoch, "step": self.step, "totals": asdict(self.totals), "norms": self.norms},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for the state of another run, or one whose parts do not fit."""
        differences = TrainConfig.from_dict(state["config"]).differences(self.config)
        if differences:
            option, (theirs, mine) = next(iter(differences.items()))
            raise CheckpointError(f"it is of another run: its {option} is {theirs!r}, here it is {mine!r}")
        try:
            self.model.load_state_dict(state["model"])
            if self.tost is not None:  # before the optimizer, whose parameters go with the ghosts
                self.tost.load_state_dict(state["tost"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            if self.growth is not None:
                self.growth.load_state_dict(state["growth"])
            if self.observer is not None and state.get("observer") is not None:  # older versions had none
                self.observer.load_state_dict(state["observer"])
            if state.get("average") is not None:  # older versions had none
                average = self.average or self.begin_average()  # later than the run, where there were ghosts
                average.load_state_dict(state["average"])
            self.loader.load_state_dict(state["loader"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"its contents do not fit this run: {error}") from error
        set_rng_state(self.device, state["rng"])
        progress = state["progress"]
        self.epoch, self.step, self.totals = progress["epoch"], progress["step"], Totals(**progress["totals"])
        self.norms = progress.get("norms", self.norms)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(device: torch.device, state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
