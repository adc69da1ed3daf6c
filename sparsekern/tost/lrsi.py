"""Layer-wise re-scaled initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.nn import SparseLayer

_LEFT = "left: "

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TensorScale:
    """One parameter: its name, its elements, the scalar it was multiplied by, and what is to be said about it."""

    name: str
    size: int
    scale: float
    note: str = ""


@dataclass(frozen=True)
class LrsiReport:
    """What `lrsi` did. `print` it.

    Attributes:
        rows: every parameter; those that were left have scale 1, and a note why.
        norms: of the gradient, before each iteration.
        losses: of the probes, one of each iteration whose gradient was short enough.
    """

    rows: tuple[TensorScale, ...]
    norms: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def scales(self) -> dict[str, float]:
        return {row.name: row.scale for row in self.rows}

    @property
    def brief(self) -> str:
        """One line."""
        scales = [row.scale for row in self.rows if not row.note.startswith(_LEFT)]
        found = f"; scales from {min(scales):.3g} to {max(scales):.3g}" if scales else ""
        return f"lrsi: the gradient's norm went from {self.norms[0]:.3g} to {self.norms[-1]:.3g}{found}"

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{row.name.ljust(width)}  {row.size:>11,}  {row.scale:8.4f}  {row.note}".rstrip() for row in self.rows
        ]
        return "\n".join(lines)


def lrsi(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss = F.cross_entropy,
    *,
    iterations: int = 180,
    lr: float = 1e-2,
    eta: float = 0.1,
    gamma: float = 1.0,
    min_scale: float = 0.01,
) -> LrsiReport:
    """Multiplies each parameter by a scalar of its own, found so that the first step of training lowers the loss most.

    The layer-wise re-scaled initialisation of ToST (arXiv 2206.12755, section 3), by GradInit (Zhu et al. 2021, arXiv
    2102.08098). With p0 a parameter's value, p = a p0 and a = 1 at first. An iteration takes a batch of two halves and
    its gradient g over all parameters. Where the norm |g| is above ``gamma``, it is what Adam makes smaller, by g's
    own derivative. Else it is the loss at the probe p - eta g / |g|, on the first half and a third one; the probe's
    step counts as a constant. Adam's gradient of a is <gradient of p, p0>, at most 1 in size; then a is at least
    ``min_scale``, or 0 for a bias.

    Works on the values that there are: beside the model, three tensors of each parameter's size (p0 and two
    gradients), and the activations of one second derivative. Batch norms use their batch's statistics, buffers stay as
    they are, and dropout is off. Left alone, each named in the report: parameters that are frozen, all zero, or that
    the loss does not depend on. Rows without edges, whose outputs are constant, are named too.

    Args:
        model: before training, in the dtype that it is to be scaled in, without autocast.
        batches: (inputs, targets), each a half; started anew when it ends. Two or three are taken in an iteration.
        loss: (model(inputs), targets) -> scalar.
        iterations: of Adam on the scalars.
        lr: Adam's, per iteration.
        eta: length of the probing step.
        gamma: highest gradient norm that is probed.
        min_scale: lowest scalar of what is no bias.

    Raises:
        ValueError: an argument out of range, too few batches, or a model without a parameter to scale.
        FloatingPointError: a gradient that is not finite. The parameters are then as they were at first.
    """
    for name, value, least in (
        ("lr", lr, 0.0),
        ("eta", eta, 0.0),
        ("gamma", gamma, 0.0),
        ("min_scale", min_scale, 0.0),
    ):
        if not least <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; expected a finite number of at least {least:g}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations is {iterations!r}; expected an integer of at least 1")
    halves = _endless(batches)
    named = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    notes = dict.fromkeys(named.keys() - trained.keys(), f"{_LEFT}is frozen")
    if not trained:
        raise ValueError("model has no parameter that requires a gradient")
    # torch's other attention kernels have no second derivative.
    with _by_batch_statistics(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        scaling = _Scaling(trained, lr, min_scale)
        try:
            norms, losses = scaling.search(model, halves, loss, iterations, eta, gamma)
        except BaseException:
            scaling.restore()
            raise
        finally:
            halves.close()  # and with it the loader's own iterator
    notes |= scaling.notes()
    edgeless = _rows_without_edges(model)
    rows = [
        TensorScale(
            name, parameter.numel(), scaling.scale(name), "; ".join(filter(None, (notes.get(name), edgeless.get(name))))
        )
        for name, parameter in named.items()
    ]
    return LrsiReport(tuple(rows), tuple(norms), tuple(losses))


class _Scaling:
    """The scalars, the values they started from, and Adam."""

    def __init__(self, parameters: dict[str, nn.Parameter], lr: float, min_scale: float) -> None:
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.initial = [parameter.detach().clone() for parameter in self.parameters]
        self.zero = [not bool(initial.any()) for initial in self.initial]
        self.unused = [True] * len(self.names)
        lowest = [0.0 if name.rpartition(".")[2] == "bias" else min_scale for name in self.names]
        self.lowest = torch.tensor(lowest, dtype=torch.float64, device="cpu")
        self.scales = torch.ones(len(self.names), dtype=torch.float64, device="cpu", requires_grad=True)
        self.adam = torch.optim.Adam([self.scales], lr=lr)

    def search(
        self,
        model: nn.Module,
        halves: Iterator[Batch],
        loss: Loss,
        iterations: int,
        eta: float,
        gamma: float,
    ) -> tuple[list[float], list[float]]:
        norms, losses = [], []
        for _ in range(iterations):
            first, second = next(halves), next(halves)
            gradients = self._gradients(_joint_loss(model, loss, first, second), create_graph=True)
            norm = torch.stack([g.square().sum(dtype=torch.float64) for g in gradients if g is not None]).sum().sqrt()
            norms.append(norm.item())
            if not math.isfinite(norms[-1]):
                raise FloatingPointError(f"the gradient's norm is {norms[-1]} in iteration {len(norms)}")
            if norms[-1] > gamma:
                objective = norm
            else:
                self._probe(gradients, eta / max(norms[-1], torch.finfo(torch.float32).tiny))
                objective = _joint_loss(model, loss, first, next(halves))
                losses.append(objective.item())
            self._step(self._gradients(objective, create_graph=False))
        return norms, losses

    def notes(self) -> dict[str, str]:
        notes = {
            name: f"{_LEFT}the loss does not depend on it"
            for name, no in zip(self.names, self.unused, strict=True)
            if no
        }
        return {
            name: f"{_LEFT}is all zeros" for name, is_zero in zip(self.names, self.zero, strict=True) if is_zero
        } | notes

    def scale(self, name: str) -> float:
        return self.scales[self.names.index(name)].item() if name in self.names else 1.0

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, initial in zip(self.parameters, self.initial, strict=True):
            parameter.copy_(initial)

    def _gradients(self, objective: Tensor, create_graph: bool) -> list[Tensor | None]:
        gradients = torch.autograd.grad(objective, self.parameters, create_graph=create_graph, allow_unused=True)
        self.unused = [was and g is None for was, g in zip(self.unused, gradients, strict=True)]
        return list(gradients)

    @torch.no_grad()
    def _probe(self, gradients: list[Tensor | None], factor: float) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(gradient, alpha=factor)

    @torch.no_grad()
    def _step(self, gradients: list[Tensor | None]) -> None:
        slopes = [
            0.0 if gradient is None else (gradient * initial).sum(dtype=torch.float64).item()
            for gradient, initial in zip(gradients, self.initial, strict=True)
        ]
        self.scales.grad = torch.tensor(slopes, dtype=torch.float64, device="cpu").clamp_(-1, 1)
        self.adam.step()
        torch.maximum(self.scales, self.lowest, out=self.scales)
        for parameter, initial, scale in zip(self.parameters, self.initial, self.scales.tolist(), strict=True):
            parameter.copy_(initial).mul_(scale)


def _joint_loss(model: nn.Module, loss: Loss, one: Batch, other: Batch) -> Tensor:
    return loss(model(torch.cat([one[0], other[0]])), torch.cat([one[1], other[1]]))


def _endless(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    rounds = 0
    while True:
        count = 0
        for inputs, targets in batches:
            count += 1
            yield inputs, targets
        if count == 0:
            what = "is empty" if rounds == 0 else "cannot be started anew after its end"
            raise ValueError(f"batches {what}; expected (inputs, targets) pairs, in a list or a loader")
        rounds += 1


@contextmanager
def _by_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but for batch norms, which take their batch's statistics and leave the running ones alone."""
    modes = {module: module.training for module in model.modules()}
    tracking = {m: m.track_running_stats for m in modes if isinstance(m, _BatchNorm)}
    model.eval()
    for norm in tracking:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, tracks in tracking.items():
            norm.track_running_stats = tracks


def _rows_without_edges(model: nn.Module) -> dict[str, str]:
    notes = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            empty = int((module.pattern.fan_in() == 0).sum())
            if empty:
                notes[f"{name}.weight".lstrip(".")] = f"{empty} of {module.matrix_shape[0]} rows have no edges"
    return notes
