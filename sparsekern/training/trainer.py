"""One run in memory: its step, its epoch's end, and its whole state as a tree."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.data.images import Split
from sparsekern.data.seeds import hashed_seed
from sparsekern.growth import Observer, find_sparse_layers
from sparsekern.masks import load_dense
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
from sparsekern.training.nonfinite import NonFinite
from sparsekern.training.norms import measure_norms
from sparsekern.training.progress import StopAsked
from sparsekern.training.ranks import processes
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
    """Builds all that `config` names. The caller iterates `batches`, calls `train_step` and ends epochs.

    Args:
        config: of the run.
        model: a network to train as it is, in the place of the one that `config` names.
        restoring: whether a checkpoint will be loaded. A mask file is then not read: the checkpoint has the topology.

    On several processes each trains on its part of every batch, and `finish_epoch`, `evaluate` and `state_dict` are
    called on all of them. `any_processes` is to be set for one that will load the state of another number of them, to
    use the network.
    """

    any_processes = False

    def __init__(self, config: TrainConfig, model: nn.Module | None = None, *, restoring: bool = False) -> None:
        self.config = config
        self.processes = processes()
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
        self.loader.take_part(self.processes.number, self.processes.count)
        self.mixing = build_mixing(config.data, self.data.classes, config.run.seed)
        self.total_steps = config.run.epochs * len(self.loader)
        if model is None:
            # A sparse network's dense weights are never held: it comes to be on the meta device, and to be real sparse.
            with torch.device("cpu" if config.sparsity.is_dense else "meta"):
                model = build_model(config.model, self.data)
            if not config.sparsity.is_dense:
                generator = torch.Generator().manual_seed(topology_seed)
                build_topology(config.sparsity, model, generator, restoring=restoring)
            if config.sparsity.weights is not None and not restoring:
                load_dense(model, config.sparsity.weights)
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
        self.nonfinite = NonFinite(config.run.nonfinite, self.processes.all_say)
        self.epoch, self.step, self.totals = 0, 0, Totals()
        self.awaits_test = False  # the epoch's batches have been taken, and the loader has begun the next epoch
        self.norms: dict[str, Any] = {"grad_norm": None, "layers": {}}  # at the last epoch's last step
        self.step_seconds = 0.0
        self.parallel: DistributedDataParallel | None = None
        if self.processes.number:  # what is drawn for a process's own images, such as dropout, is its own
            torch.manual_seed(hashed_seed(config.run.seed, "process", self.processes.number))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are left of this epoch; none where it has only its test left."""
        if not self.awaits_test:
            yield from self.loader
            self.awaits_test = True

    def train_step(self, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        """One optimizer step. Returns a row a layer if the topology changed.

        Raises FloatingPointError for a loss that is not finite, as the run's `nonfinite` says (`NonFinite`).
        """
        started = time.perf_counter()
        options = self.config.optimizer
        images, targets = (images, labels) if self.mixing is None else self.mixing(images, labels, self.step)
        self.nonfinite.begin(self.model)
        logits = self.predict(images, self.in_parallel())
        loss = smoothed_cross_entropy(logits, targets, options.label_smoothing, options.label_smoothing_over)
        self.optimizer.zero_grad()
        number, is_made = self.step + 1, False
        if self.nonfinite.admits_loss(loss, number):
            self.scaler.scale(loss if self.parallel is None else loss * self.weight_of(len(images))).backward()
            is_made = self.nonfinite.admits_gradients(self.trained(), number, scaled=self.scaler.is_enabled())
        if is_made:
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
            had_ghosts = not self.tost.over
            self.tost.step()
            if had_ghosts and self.tost.over:
                self.parallel = None  # to be made anew, without the ghosts' parameters
            if options.ema and self.average is None and self.tost.over:
                self.begin_average()
        self.scheduler.step()
        self.step += 1
        if is_made:
            value = loss.item()
            self.nonfinite.check(value, self.step)
            self.totals.loss += value * len(images)
            # Of a mixed image, the class that most of it is from.
            classes = targets if targets.dim() == 1 else targets.argmax(dim=1)
            self.totals.correct += int((logits.argmax(dim=1) == classes).sum())
            self.totals.images += len(images)
        self.totals.replaced += sum(update.replaced for update in updates)
        self.step_seconds = time.perf_counter() - started
        self.totals.seconds += self.step_seconds
        # The growth counts the optimizer's real steps; the files count the trainer's, skipped ones too.
        return [asdict(update) | {"step": self.step} for update in updates]

    def in_parallel(self) -> nn.Module:
        """The network as it is trained: on several processes, gradients become the mean over them."""
        if self.processes.count == 1:
            return self.model
        if self.parallel is None:
            self.parallel = DistributedDataParallel(self.model)
        return self.parallel

    def weight_of(self, images: int) -> float:
        """What a process's mean loss is multiplied by, for the processes' mean to be that over all of a batch."""
        return images * self.processes.count / self.config.data.batch_size

    def trained(self) -> list[nn.Parameter]:
        """All that the optimizer steps on: the network's parameters, and the ghosts' while there are any."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def rescale(self) -> LrsiReport | None:
        """What comes before the first step, where the run's configuration asks for it: `lrsi` on training batches."""
        if not self.config.tost.lrsi or self.step > 0:
            return None
        before = self.loader.state_dict()
        self.loader.take_part(0, 1)  # each process sees all images, and comes to the same scales
        report = lrsi(self.model, self.loader, iterations=self.config.tost.lrsi_iterations)
        self.loader.take_part(self.processes.number, self.processes.count)
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

    def finish_epoch(self, interrupt: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Tests the model and returns the epoch's row of metrics.

        `interrupt` is called between the batches of the test. A StopAsked that it raises on one of the processes leaves
        the epoch unfinished on all, and its test to be made anew. Raises FloatingPointError for an epoch whose steps
        were all skipped.
        """
        totals = self.totals
        loss, correct, images = self.processes.sums((totals.loss, totals.correct, totals.images))
        if not images:
            raise FloatingPointError(f"all steps of epoch {self.epoch + 1} were skipped: none had a finite loss")
        dev_loss, dev_accuracy = self.evaluate("dev", interrupt) if self.data.has_dev else ("", "")
        test_loss, test_accuracy = self.evaluate("test", interrupt)
        self.totals, self.awaits_test = Totals(), False
        self.epoch += 1
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": loss / images,
            "train_accuracy": correct / images,
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
    def evaluate(self, split: Split = "test", interrupt: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """(mean loss, share of right answers) over the test or the dev images; `interrupt` as for `finish_epoch`."""
        model = self.evaluated
        was_training = model.training
        self.processes.share_buffers(model)
        model.eval()
        batches = []
        is_broken_off = False
        try:
            parts = self.processes.number, self.processes.count
            for images, labels in self.data.batches(split, EVALUATION_BATCH, *parts):
                interrupt()
                batches.append((self.predict(images, model), labels))
        except StopAsked:
            if self.processes.count == 1:
                raise
            is_broken_off = True
        finally:
            model.train(was_training)
        if self.processes.count > 1:
            return self.mean_of_all(batches, is_broken_off)
        logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return F.cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).double().mean().item()

    def mean_of_all(self, batches: list[tuple[Tensor, Tensor]], is_broken_off: bool) -> tuple[float, float]:
        """(mean loss, share of right answers) over the batches of all processes.

        Raises StopAsked on all of them where one broke off.
        """
        losses = sum(F.cross_entropy(logits, labels, reduction="sum").item() for logits, labels in batches)
        correct = sum(int((logits.argmax(dim=1) == labels).sum()) for logits, labels in batches)
        sums = self.processes.sums((losses, correct, sum(len(labels) for _, labels in batches), is_broken_off))
        if sums[3]:
            raise StopAsked
        return sums[0] / sums[2], sums[1] / sums[2]

    def state_dict(self) -> dict[str, Any]:
        """All that the coming steps depend on, of all processes."""
        state: dict[str, Any] = {
            "config": self.config.to_dict(),
            "images": [self.data.channels, self.data.size, self.data.classes],
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
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "totals": asdict(self.totals),
                "awaits_test": self.awaits_test,
                "skipped_in_a_row": self.nonfinite.in_a_row,
                "norms": self.norms,
            },
        }
        if self.processes.count > 1:
            own = {"rng": state["rng"], "totals": asdict(self.totals)}
            state["processes"] = self.processes.gather(own)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for the state of another run, or one whose parts do not fit."""
        differences = TrainConfig.from_dict(state["config"]).differences(self.config)
        if differences:
            option, (theirs, mine) = next(iter(differences.items()))
            raise CheckpointError(f"it is of another run: its {option} is {theirs!r}, here it is {mine!r}")
        own = state.get("processes", [{"rng": state["rng"], "totals": state["progress"]["totals"]}])
        if len(own) != self.processes.count and not self.any_processes:
            raise CheckpointError(
                f"it is of a run on {len(own)} process(es), here there are {self.processes.count}: go on with "
                f"torchrun --nproc-per-node={len(own)}, or as many on all nodes together"
            )
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
        mine = own[self.processes.number]
        set_rng_state(self.device, mine["rng"])
        progress = state["progress"]
        self.epoch, self.step, self.totals = progress["epoch"], progress["step"], Totals(**mine["totals"])
        self.awaits_test = progress.get("awaits_test", False)  # older versions had none of these
        self.nonfinite.in_a_row = progress.get("skipped_in_a_row", 0)
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
