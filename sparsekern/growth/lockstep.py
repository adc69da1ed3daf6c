"""How ranks come to the same layers at the same time, and how they notice that they hold different ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsekern.growth.ranks import GlobalBatch, Ranks, RanksDiffer, digest, spelt
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern

# Where a rank is when it is at no layer: at the end of a backward pass, or after the optimizer's step.
END, STEP = -1, -2


class Lockstep:
    """The layers of a growth on one of several ranks.

    Statistics are added up inside of backward passes, where a rank may come to other layers than the next: an expert
    that got no token, a batch without images. So every collective begins with all ranks saying where they are, and the
    layer that is furthest on is served by all, those that are elsewhere adding nothing.
    """

    def __init__(self, ranks: Ranks, layers: Mapping[str, SparseLayer]) -> None:
        self.ranks = ranks
        self.layers = layers
        self._names = list(layers)
        self._places = {name: place for place, name in enumerate(layers)}

    def begin(self, config: Mapping[str, Any], followers: Sequence[Mapping[str, SparseLayer]]) -> None:
        """Compares configurations and layers; those whose edges or values differ take the first rank's.

        Raises:
            RanksDiffer: where another rank's growth or layers are of another kind.
        """
        sizes = {name: f"{layer.matrix_shape}, nnz={layer.nnz}" for name, layer in self.layers.items()}
        models: dict[str, Any] = {"followers": len(followers), **config}
        for kind, mine in (("growth's", models), ("sparse layers'", sizes)):
            told = self.ranks.gather_objects(mine)
            for key in {key: None for each in told for key in each}:
                same, others = self.ranks.split([each.get(key) for each in told])
                if others:
                    theirs = told[self.ranks.members.index(others[0])].get(key)
                    raise RanksDiffer(
                        f"the {kind} {key} is {told[0].get(key)} on {spelt(same)} and {theirs} on {spelt(others)}: "
                        'ranks that train models of their own take process_group="alone"'
                    )
        copies = (self.layers, *followers)
        told = self.ranks.gather([_content(copy[name]) for copy in copies for name in self.layers])
        differing = [self.ranks.split(each)[1] for each in zip(*told, strict=True)]
        for at, others in enumerate(differing):
            if others:
                self._take_first(copies[at // len(self.layers)][self._names[at % len(self.layers)]])

    def _take_first(self, layer: SparseLayer) -> None:
        taken = [self.ranks.take_first(tensor) for tensor in (layer.ccol_indices, layer.row_indices, layer.weight)]
        layer.set_pattern(Pattern.from_csc(layer.matrix_shape, *taken[:2]), taken[2])

    def agree_on(self, seed: int) -> int:
        """The first rank's."""
        return self.ranks.gather([seed])[0][0]

    def next(self, at: str | int, rows: int = 0, note: int = 0) -> tuple[str, GlobalBatch] | None:
        """The layer to serve now, and the batch that it has; None once all ranks are as far as this one.

        Args:
            at: the layer that this rank has come to, END or STEP.
            rows: batch rows that it has there.
            note: with STEP, what is to be the same on all ranks: twice the steps, and 1 if the optimizer stepped.
        """
        place = self._places[at] if isinstance(at, str) else at
        while True:
            try:
                told = self.ranks.gather([place, rows, note])
            except RuntimeError as error:
                where = {END: "at the end of backward", STEP: "after the optimizer's step"}.get(
                    place, f"at layer {at!r}"
                )
                raise RuntimeError(
                    f"rank {self.ranks.members[self.ranks.place]} waited {where} for the other ranks, and one of them "
                    f"ended or did not come: {error}. Batches that leave parameters out need "
                    "DistributedDataParallel(..., find_unused_parameters=True)"
                ) from error
            furthest = max(each[0] for each in told)
            if furthest >= 0:
                counts = [each[1] if each[0] == furthest else 0 for each in told]
                first = sum(counts[: self.ranks.place])
                return self._names[furthest], GlobalBatch(self.ranks, first, sum(counts))
            if place == END:
                return None
            if furthest == STEP:
                self._compare_steps([each[2] for each in told])
                return None

    def _compare_steps(self, notes: Sequence[int]) -> None:
        same, others = self.ranks.split(notes)
        if others:
            mine, theirs = (divmod(notes[self.ranks.members.index(rank)], 2) for rank in (same[0], others[0]))
            words = ("did not step", "stepped")
            raise RanksDiffer(
                f"the optimizer {words[mine[1]]} after {mine[0]} steps on {spelt(same)}, and {words[theirs[1]]} after "
                f"{theirs[0]} on {spelt(others)}: all ranks have to step, or skip a step, together"
            )

    def compare_candidates(self, candidates: Mapping[str, Pattern], step: int) -> None:
        """Before gradients at the candidates are added up, whose numbers have to agree.

        Raises:
            RanksDiffer: where a layer has another number of edges or candidates on another rank; names both.
        """
        mine = []
        for name, layer in self.layers.items():
            mine += [layer.nnz, candidates[name].nnz if name in candidates else -1]
        told = self.ranks.gather(mine)
        self._compare([list(zip(each[::2], each[1::2], strict=True)) for each in told], step)

    def compare_topologies(self, step: int) -> None:
        """By a 64-bit hash of each layer's indices.

        Raises:
            RanksDiffer: where a layer has other edges on another rank; names both.
        """
        hashes = [digest(layer.ccol_indices, layer.row_indices) for layer in self.layers.values()]
        self._compare(self.ranks.gather(hashes), step)

    def _compare(self, told: Sequence[Sequence[Any]], step: int) -> None:
        differing = {}
        for name, items in zip(self._names, zip(*told, strict=True), strict=True):
            same, others = self.ranks.split(items)
            if others:
                differing[name] = f"layer {name!r} has other edges on {spelt(others)} than on {spelt(same)}"
        if differing:
            more = "" if len(differing) == 1 else f" (and {len(differing) - 1} more layers differ)"
            raise RanksDiffer(
                f"at the update of step {step}, {next(iter(differing.values()))}{more}: something changed the topology "
                "or the weights on some ranks only"
            )


def _content(layer: SparseLayer) -> int:
    return digest(layer.ccol_indices, layer.row_indices, layer.weight)
