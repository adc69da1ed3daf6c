"""Which candidates may be timed: those that compute what dense does, and in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.libraries import dense
from benchmarks.libraries.candidate import Candidate, largest_error
from benchmarks.shapes import Shape

# Of the largest element of the same result; sums of some thousand products, and for bfloat16 one rounding of each sum.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1.5e-2}
DENSE = "dense"
FAILURES = (RuntimeError, MemoryError)  # what libraries raise that lack a shape or run out of memory


@dataclass(frozen=True)
class Problem:
    """A dense layer, which of its weights stay, an input, the output's gradient, and what comes out.

    `expected` is the output, the input gradient and the weight gradient at the edges, by dense torch in float32.
    """

    layer: nn.Linear | nn.Conv2d
    sparsity: float
    mask: Tensor
    x: Tensor
    grad: Tensor
    expected: tuple[Tensor, ...]

    @classmethod
    def draw(cls, shape: Shape, layer: nn.Linear | nn.Conv2d, sparsity: float) -> Problem:
        """A random one, in the layer's dtype."""
        dtype = layer.weight.dtype
        mask = torch.rand(layer.weight.shape) < 1 - sparsity / 100
        x = shape.sample(layer).to(dtype)
        reference = dense.layers(layer, mask, torch.float32)[0]
        with torch.no_grad():
            grad = torch.randn(reference.forward(x.float()).shape).to(dtype)
        return cls(layer, sparsity, mask, x, grad, reference.results(x.float(), grad.float()))


@dataclass
class Entry:
    """A candidate that may be timed, at a sparsity in percent (None: dense), with its largest relative error."""

    candidate: Candidate
    sparsity: float | None
    edges: int
    error: float = 0.0

    @property
    def label(self) -> str:
        return self.candidate.name if self.sparsity is None else at(self.candidate.name, self.sparsity)


def at(name: str, sparsity: float) -> str:
    return f"{name} at {sparsity:g}%"


@dataclass
class Admission:
    """Lets candidates in and notes why it does not: `longest` is in seconds a call, and for peers only."""

    tolerance: float
    longest: float
    notes: list[str] = field(default_factory=list)
    too_slow: set[str] = field(default_factory=set)

    def admit(
        self,
        problem: Problem,
        name: str,
        make: Callable[[nn.Linear | nn.Conv2d, Tensor], list[Candidate]],
        is_peer: bool = False,
    ) -> list[Entry]:
        """The candidates of a library that agree with dense, and are quick enough at this sparsity and higher ones."""
        try:
            candidates = make(problem.layer, problem.mask)
        except FAILURES as error:
            self._note_failure(at(name, problem.sparsity), error)
            return []
        is_dense = name == DENSE
        entries = [
            Entry(
                candidate,
                sparsity=None if is_dense else problem.sparsity,
                edges=problem.mask.numel() if is_dense else int(problem.mask.sum()),
            )
            for candidate in candidates
            if candidate.name not in self.too_slow
        ]
        return [entry for entry in entries if self._passes(entry, problem, is_peer)]

    def _passes(self, entry: Entry, problem: Problem, is_peer: bool) -> bool:
        try:
            entry.error = largest_error(entry.candidate.results(problem.x, problem.grad), problem.expected)
            took = one_call(entry.candidate, problem) if is_peer else 0.0
        except FAILURES as error:
            self._note_failure(entry.label, error)
            return False
        if entry.error > self.tolerance:
            self.notes.append(f"{entry.label}: wrong by {entry.error:.1e} of the largest element, not timed")
            return False
        if took > self.longest:
            self.notes.append(f"{entry.label}: one call takes {took:.1f} s, not timed there and at lower sparsities")
            self.too_slow.add(entry.candidate.name)
            return False
        return True

    def _note_failure(self, label: str, error: BaseException) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self.notes.append(f"{label}: failed, not timed ({reason})")


def one_call(candidate: Candidate, problem: Problem) -> float:
    """Seconds of one training step."""
    step = candidate.prepare_step(problem.x, problem.grad)
    began = time.perf_counter()
    step()
    took = time.perf_counter() - began
    candidate.forget_gradients()
    return took
