"""What an update did to the layers, told once it is known."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from sparsekern.backends.topology.numbers import Number, read

DRAWN_FROM = "its activations or gradients hold values that are not finite"
SCORED_BY = "the gradients of its candidates hold values that are not finite"


@dataclass(frozen=True)
class LayerUpdate:
    """What one update did to one layer.

    Attributes:
        step: the optimizer step, counted from 1, after which the update was made.
        layer: the layer's name in the model.
        nnz: its edges.
        density: nnz over rows * columns.
        asked: edges that the schedule would replace.
        candidates: edges that were drawn as candidates to grow.
        replaced: edges that were replaced: the lesser of asked and candidates.
        skipped: why nothing was replaced; empty where that is not the case.
    """

    step: int
    layer: str
    nnz: int
    density: float
    asked: int
    candidates: int
    replaced: int
    skipped: str = ""


@dataclass
class Outcome:
    """The same before the layer's device has told the numbers.

    Attributes:
        problem: why the layer was skipped, where the host knew that.
        warned: whether that is worth a warning.
        drawn_well, scored_well: whether the candidates' draw, and their gradient, was of finite numbers.
        followed: whether the followers' layers had the same edges. If one of the three is not so, nothing was replaced.
    """

    layer: str
    nnz: int
    density: float
    asked: int
    problem: str = ""
    warned: bool = True
    candidates: Number = 0
    replaced: Number = 0
    drawn_well: Number = True
    scored_well: Number = True
    followed: Number = True


def told(step: int, outcomes: Sequence[Outcome], stacklevel: int) -> list[LayerUpdate]:
    """Reads what the devices found, all layers at once, and warns of layers that were left alone.

    Raises:
        ValueError: if a follower's layer had other edges than the model's.
    """
    numbers: list[Number] = []
    for outcome in outcomes:
        numbers += [
            outcome.candidates,
            outcome.replaced,
            outcome.drawn_well,
            outcome.scored_well,
            outcome.followed,
        ]
    known = iter(read(numbers))
    updates, lost = [], []
    for outcome in outcomes:
        candidates, replaced, drawn_well, scored_well, followed = (next(known) for _ in range(5))
        problem = outcome.problem or ("" if drawn_well else DRAWN_FROM) or ("" if scored_well else SCORED_BY)
        if problem:
            candidates = 0
            if outcome.warned:
                text = f"layer {outcome.layer!r} keeps its edges in this update: {problem}"
                warnings.warn(text, stacklevel=stacklevel + 1)
        elif not followed:
            lost.append(outcome.layer)
        updates.append(
            LayerUpdate(step, outcome.layer, outcome.nnz, outcome.density, outcome.asked, candidates, replaced, problem)
        )
    if lost:
        raise ValueError(f"a follower's layer {lost[0]!r} has other edges than the model's; expected the same")
    return updates
