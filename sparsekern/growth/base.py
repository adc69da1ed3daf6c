"""The frame of every method that changes the topology while training."""

import hashlib
import math
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekern.growth.edges import Move, move_parameter
from sparsekern.growth.layers import find_sparse_layers
from sparsekern.growth.schedule import cosine_share
from sparsekern.growth.select import all_finite, mark_by_magnitude
from sparsekern.marks import mark_positions
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern, draw_seed


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
class _Proposal:
    """A layer's candidates and their gradient so far, during an armed step."""

    candidates: Pattern | None = None
    scores: Tensor | None = None
    problem: str = ""


class Growth:
    """Replaces a share of each sparse layer's edges every ``interval`` steps, in place and with nnz constant.

    Call :meth:`step` after every ``optimizer.step()`` (or ``GradScaler.step``)::

        loss.backward()
        optimizer.step()
        growth.step()

    Steps are counted by the optimizer's own step hook, so a step that a GradScaler skipped is not one. In the
    backward passes of step t, for t a multiple of ``interval`` below ``end``, candidates are drawn in each
    layer's first backward call, and their gradient is summed over all its calls in that step: micro-batches,
    or several uses of the layer. ``step`` then replaces k = ceil(share(t) * nnz) edges of each layer, fewer
    where there are fewer candidates: the candidates with the largest absolute gradient grow, with value 0, in
    the place of the edges with the smallest absolute weight; equal ones are taken in stored order. The share
    is ``alpha / 2 * (1 + cos(pi t / end))``. Kept edges keep their weight, gradient and optimizer state (any
    tensors of the parameter's shape); those of grown edges start at 0.

    A layer that backward did not reach is left alone. So is, with a warning, one whose candidates' gradient
    is not finite. If the optimizer did not step, the candidates are dropped and the update is made at the
    next real step.

    Args:
        model: the model whose sparse layers change. Layers with a frozen weight are left out.
        optimizer: holds the weights of all these layers.
        alpha: share of the edges that the first update would replace at step 0, in [0, 1].
        interval: steps between updates, at least 1.
        end: step from which on the topology stays.
        exclude: patterns of layer names to leave alone, such as ``"head*"``.
        followers: models with the same layers and edges, such as a moving average of this one
            (``torch.optim.swa_utils.AveragedModel``), whose edges and values move along.
        generator: CPU generator that the seed of all later random draws is taken from; torch's default one
            if None.

    Raises:
        TypeError, ValueError: naming the argument or layer that does not fit.
    """

    # Whether candidates are drawn in backward, from activations and gradients.
    needs_backward = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        alpha: float = 0.2,
        interval: int = 1000,
        end: int,
        exclude: Sequence[str] = (),
        followers: Sequence[nn.Module] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha!r}; expected a number in [0, 1]")
        for name, value, least in (("interval", interval, 1), ("end", end, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}, in optimizer steps")
        if isinstance(exclude, str):
            raise TypeError(f"exclude is the string {exclude!r}; expected a sequence of name patterns")
        self.alpha = alpha
        self.interval = interval
        self.end = end
        self.optimizer = optimizer
        self.layers = {
            name: layer
            for name, layer in find_sparse_layers(model, tuple(exclude)).items()
            if layer.weight.requires_grad
        }
        if not find_sparse_layers(model):
            raise ValueError("model has no sparse layers whose edges could move: call sparsekern.sparsify(model) first")
        self._check_layers()
        self.followers: list[dict[str, SparseLayer]] = []
        for follower in followers:
            self.follow(follower)
        # Values (nnz,) by layer that move along with its edges, as an optimizer's state does.
        self.carried: dict[str, Tensor] = {}
        self._names = {layer: name for name, layer in self.layers.items()}
        self._seed = draw_seed(generator)
        self._steps = 0  # real optimizer steps that step() has seen
        self._attempt = 0  # armed steps dropped since the last update
        self._hooked = False
        self._stepped = False  # whether the optimizer has stepped since the last step()
        self._proposals: dict[str, _Proposal] = {}
        self._hook_optimizer()
        self._arm()

    def follow(self, follower: nn.Module) -> None:
        """Has one more model move along from now on, as those of ``followers`` do.

        Raises:
            ValueError: if it lacks a layer, or a layer has other edges than the model's; names it.
        """
        self.followers.append(self._followed(follower))

    def propose(
        self,
        layer: SparseLayer,
        x: Tensor,
        grad: Tensor,
        asked: int,
        generator: torch.Generator,
    ) -> Pattern:
        """Candidates to grow, none of them an edge of the layer.

        Args:
            layer: the layer.
            x, grad: its product's input and output gradient, as a watcher is given them; empty where
                ``needs_backward`` is false.
            asked: edges that this update would replace.
            generator: a CPU generator of this layer's and this update's own.

        Raises:
            FloatingPointError: where x or grad is not finite; the layer's update is then skipped.
        """
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Real optimizer steps so far."""
        return self._steps

    @property
    def _coming(self) -> int:
        return self._steps + 1

    @property
    def armed(self) -> bool:
        """Whether the coming step is one that updates the topology."""
        return self._coming % self.interval == 0 and self.share(self._coming) > 0

    def share(self, step: int) -> float:
        """The share of each layer's edges that an update after step ``step`` replaces."""
        return cosine_share(step, self.alpha, self.end)

    @torch.no_grad()
    def step(self) -> list[LayerUpdate]:
        """Counts the optimizer's step and, where it is an update step, changes the topology.

        Returns:
            What was done to each layer; empty where this was not an update step.
        """
        stepped = self._stepped or not self._hooked
        self._stepped = False
        proposals, self._proposals = self._proposals, {}
        if not stepped:
            self._attempt += 1
            return []
        updates = []
        if self.armed:
            updates = [self._update(name, proposals.get(name)) for name in self.layers]
            self._attempt = 0
        self._steps += 1
        self._arm()
        return updates

    def state_dict(self) -> dict[str, Any]:
        """Counters and seed, to continue bit for bit; taken after :meth:`step`, at any step."""
        return {
            "steps": self._steps,
            "attempt": self._attempt,
            "seed": self._seed,
            "config": self.config(),
            "layers": {name: [*layer.matrix_shape, layer.nnz] for name, layer in self.layers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken; the topology itself is in the model's state_dict.

        Raises:
            ValueError: if the state is of another configuration or of other layers; names a difference.
        """
        mine = self.state_dict()
        for part in ("config", "layers"):
            theirs = state[part]
            for key in {**mine[part], **theirs}:
                if theirs.get(key) != mine[part].get(key):
                    raise ValueError(
                        f"the state's {part} has {theirs.get(key)!r} for {key}; expected {mine[part].get(key)!r}"
                    )
        self._steps = int(state["steps"])
        self._attempt = int(state["attempt"])
        self._seed = int(state["seed"])
        self._stepped = False
        self._proposals = {}
        self._arm()

    def config(self) -> dict[str, Any]:
        """The arguments that decide what happens at which step."""
        return {
            "method": type(self).__name__,
            "alpha": self.alpha,
            "interval": self.interval,
            "end": self.end,
        }

    def _check_layers(self) -> None:
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        owners: dict[int, str] = {}
        for name, layer in self.layers.items():
            if id(layer.weight) not in held:
                raise ValueError(
                    f"the weight of layer {name!r} is not among the optimizer's parameters: build the "
                    "optimizer with model.parameters() after sparsify, or name the layer in exclude"
                )
            other = owners.setdefault(id(layer.weight), name)
            if other != name:
                raise ValueError(
                    f"layers {other!r} and {name!r} hold the same weight Parameter with indices of their "
                    "own: share the whole layer, or name both in exclude"
                )

    def _followed(self, follower: nn.Module) -> dict[str, SparseLayer]:
        layers = find_sparse_layers(follower)
        for name, layer in self.layers.items():
            if name not in layers or not layers[name].pattern.equal(layer.pattern):
                raise ValueError(
                    f"a follower's layer {name!r} is missing or has other edges; expected the model's edges"
                )
        return layers

    def _hook_optimizer(self) -> None:
        register = getattr(self.optimizer, "register_step_post_hook", None)
        if register is None:  # not a torch optimizer: every call of step() counts
            return
        reference = weakref.ref(self)

        def count(optimizer: Optimizer, *_: Any) -> None:
            # A fused optimizer is called for a skipped step too: a GradScaler tells it so by this attribute.
            skipped = getattr(optimizer, "found_inf", None)
            growth = reference()
            if growth is not None and not (skipped is not None and bool(skipped)):
                growth._stepped = True

        register(count)
        self._hooked = True

    def _arm(self) -> None:
        watcher = None
        if self.armed and self.needs_backward:
            reference = weakref.ref(self)

            def watcher(layer: SparseLayer, x: Tensor, grad: Tensor) -> None:
                growth = reference()
                if growth is not None:
                    growth._watch(layer, x, grad)

        for layer in self.layers.values():
            layer.watcher = watcher

    @torch.no_grad()
    def _watch(self, layer: SparseLayer, x: Tensor, grad: Tensor) -> None:
        """Inside backward: draws the layer's candidates if it has none, and adds this call's gradient."""
        name = self._names[layer]
        if not self.armed or x.numel() == 0:
            return
        with torch.autocast(x.device.type, enabled=False):
            proposal = self._proposals.get(name)
            if proposal is None:
                proposal = self._proposals[name] = self._propose(name, x, grad)
            if proposal.candidates is None:
                return
            scores = layer.weight_grad_at(grad, x, proposal.candidates)
        proposal.scores = scores if proposal.scores is None else proposal.scores.add_(scores)

    def _propose(self, name: str, x: Tensor, grad: Tensor) -> _Proposal:
        layer = self.layers[name]
        try:
            candidates = self.propose(layer, x, grad, self._asked(layer), self._generator(name))
        except FloatingPointError as error:
            return _Proposal(problem=str(error))
        return _Proposal(candidates)

    def _asked(self, layer: SparseLayer) -> int:
        # Rounded first: 0.1 * 30 is 3, not the 3.0000000000000004 that floats make of it.
        return math.ceil(round(self.share(self._coming) * layer.nnz, 9))

    def _generator(self, name: str) -> torch.Generator:
        """Of one layer at one update: the order in which backward reaches the layers does not matter."""
        text = f"{self._seed} {self._coming} {self._attempt} {name}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def _update(self, name: str, proposal: _Proposal | None) -> LayerUpdate:
        layer = self.layers[name]
        asked = self._asked(layer)
        if not self.needs_backward:
            nothing = layer.weight.new_empty(0)
            proposal = self._propose(name, nothing, nothing)
        candidates = 0
        replaced = 0
        if proposal is None:
            skipped = "backward did not reach it"
        else:
            skipped = proposal.problem or _not_finite(proposal.scores)
            if skipped:
                warnings.warn(f"layer {name!r} keeps its edges in this update: {skipped}", stacklevel=3)
            elif proposal.candidates is not None:
                candidates = proposal.candidates.nnz
                replaced = min(asked, candidates)
                if replaced:
                    self._replace(name, proposal.candidates, proposal.scores, replaced)
        return LayerUpdate(self._coming, name, layer.nnz, layer.density, asked, candidates, replaced, skipped)

    def _replace(self, name: str, candidates: Pattern, scores: Tensor | None, count: int) -> None:
        layer = self.layers[name]
        if scores is not None and count < candidates.nnz:
            chosen = mark_by_magnitude(scores, count, largest=True)
        else:
            chosen = mark_positions(torch.arange(count, device="cpu"), candidates.nnz)
        pruned = mark_by_magnitude(layer.weight.detach(), count, largest=False)
        followers = [layers[name] for layers in self.followers]
        if not all(follower.pattern.equal(layer.pattern) for follower in followers):
            raise ValueError(f"a follower's layer {name!r} has other edges than the model's; expected the same")
        pattern = layer.pattern
        pattern.ensure_valid()
        move = Move(pruned, pattern.exchange(pruned, candidates, chosen, count), pattern.nnz)
        move_parameter(move, layer.weight, self.optimizer)
        if name in self.carried:
            move(self.carried[name])
        for follower in followers:
            follower.pattern.copy_(layer.pattern)
            move_parameter(move, follower.weight, None)


def _not_finite(scores: Tensor | None) -> str:
    if scores is None or all_finite(scores):
        return ""
    return "the gradients of its candidates hold values that are not finite"
