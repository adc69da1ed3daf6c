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
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsekern.backends.choice import topology_of
from sparsekern.backends.topology.numbers import Number, at_most
from sparsekern.backends.topology.writes import Writes
from sparsekern.growth.candidates import Candidates
from sparsekern.growth.edges import Move, move_parameter, unwrapped
from sparsekern.growth.layers import check_whole, find_sparse_layers
from sparsekern.growth.lockstep import END, STEP, Lockstep
from sparsekern.growth.outcome import LayerUpdate, Outcome, told
from sparsekern.growth.ranks import WHOLE_BATCH, GlobalBatch, Group, find_ranks, keep_indices_home
from sparsekern.growth.schedule import cosine_share
from sparsekern.growth.select import all_finite, mark_by_magnitude
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern, draw_seed

# Calls of step() in a row without a step of the optimizer: more than accumulation or a GradScaler's search makes.
_IDLE = 500


@dataclass
class _Proposal:
    """A layer's candidates and their gradient so far, during an armed step."""

    candidates: Candidates | None = None
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
    is not finite. A weight that is NaN counts as smaller than any other, and so goes first. A row or column
    that lost its edges may get some again; a layer without any edge has none to replace. If the optimizer did
    not step, the candidates are dropped and the update is made at the next real step.

    Where torch.distributed has several ranks, they are taken to train one model, as DistributedDataParallel does, and
    hold the same topology at every step: it is made, called, saved and loaded on all of them alike, before or after
    the model is wrapped. Layers whose edges or values differ at first take the first rank's. What decides about edges
    is of the batch of all ranks; a rank with an empty batch, or whose backward does not reach a layer, adds nothing
    to it. After each update the topologies are compared. Sparse layers' indices are kept out of what
    DistributedDataParallel sends at each forward.

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
            if None. Of several ranks, the first one's seed counts.
        process_group: the ranks that train this model; None for those of its DistributedDataParallel, or all of
            them where it is not wrapped (yet); "alone" for a rank that trains a model of its own.

    Attributes:
        ranks: those that train the model together; None for a single one.
        batch: which part of their batch ``propose`` is given.

    Raises:
        TypeError, ValueError: naming the argument or layer that does not fit.
        RanksDiffer: a RuntimeError, here and in ``step``, naming the layer and ranks that differ.
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
        process_group: Group = None,
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
        self.optimizer = unwrapped(optimizer)
        self.layers = {
            name: layer
            for name, layer in find_sparse_layers(model, tuple(exclude)).items()
            if layer.weight.requires_grad
        }
        if not find_sparse_layers(model):
            raise ValueError("model has no sparse layers whose edges could move: call sparsekern.sparsify(model) first")
        check_whole(model, self.layers)
        self._check_layers()
        self.followers: list[dict[str, SparseLayer]] = []
        for follower in followers:
            self.follow(follower)
        # Values (nnz,) by layer that move along with its edges, as an optimizer's state does.
        self.carried: dict[str, Tensor] = {}
        self._names = {layer: name for name, layer in self.layers.items()}
        self._seed = draw_seed(generator)
        self.batch: GlobalBatch = WHOLE_BATCH
        self.ranks = find_ranks(model, process_group)
        self._lockstep = None
        self._model = weakref.ref(model.module if isinstance(model, DistributedDataParallel) else model)
        self._begun: RemovableHandle | None = None  # the hooks by which a backward pass is known to have begun
        if self.ranks is not None:
            self._lockstep = Lockstep(self.ranks, self.layers)
            self._lockstep.begin(self.config(), self.followers)
            self._seed = self._lockstep.agree_on(self._seed)
            keep_indices_home(model)
        self._steps = 0  # real optimizer steps that step() has seen
        self._attempt = 0  # steps that the optimizer did not make since the last update
        self._idle = 0  # of these, the last in a row
        self._hooked = False
        self._stepped = False  # whether the optimizer has stepped since the last step()
        self._proposals: dict[str, _Proposal] = {}
        self._tasks: set[int] = set()  # backward passes of this step, at whose ends the ranks meet
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
                ``needs_backward`` is false, and on a rank that has no part of the ``batch``.
            asked: edges that this update would replace.
            generator: a CPU generator of this layer's and this update's own.

        Raises:
            FloatingPointError: where x or grad is not finite; the layer's update is then skipped. On a device, where
                only that knows, ``Candidates.finite`` says so.
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
        if self.armed and self._lockstep is not None and (model := self._model()) is not None:
            check_whole(model, self.layers)  # it may have been sharded since
        stepped = self._stepped or not self._hooked
        self._stepped = False
        if self._lockstep is not None and self.armed:
            self._meet(STEP, note=2 * self._steps + stepped)
            self._tasks.clear()
        proposals, self._proposals = self._proposals, {}
        if not stepped:
            self._attempt += 1
            self._idle += 1
            if self._idle == _IDLE:
                warnings.warn(
                    f"the optimizer that this growth was made with has not stepped in {_IDLE} calls of step(): no "
                    "edges move. Make the growth anew where another optimizer has taken its place",
                    stacklevel=2,
                )
            return []
        self._idle = 0
        updates = []
        if self.armed:
            if self._lockstep is not None:
                self._average(proposals)
            outcomes = [self._update(name, proposals.get(name)) for name in self.layers]
            updates = told(self._coming, outcomes, stacklevel=3)
            if self._lockstep is not None:
                self._lockstep.compare_topologies(self._coming)
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
        if self._lockstep is not None:
            self._watch_beginnings(watcher is not None)

    def _watch_beginnings(self, armed: bool) -> None:
        """Of backward passes that reach none of the layers here; the other ranks may be waiting at one."""
        if self._begun is not None:
            self._begun.remove()
            self._begun = None
        model = self._model()
        if not armed or model is None:
            return
        reference = weakref.ref(self)

        def begin(_: Tensor) -> None:
            growth = reference()
            if growth is not None:
                growth._meet_at_the_end()

        # Before DistributedDataParallel has the gradient, and with the last of them begins to wait for the other ranks.
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._begun = register_multi_grad_hook(parameters, begin, mode="any")

    @torch.no_grad()
    def _watch(self, layer: SparseLayer, x: Tensor, grad: Tensor) -> None:
        """Inside backward: draws the layer's candidates if it has none, and adds this call's gradient."""
        name = self._names[layer]
        if not self.armed or (self._lockstep is None and x.numel() == 0):
            return
        with torch.autocast(x.device.type, enabled=False):
            if self._lockstep is not None:
                self._meet_at_the_end()
                if name not in self._proposals:
                    rows = grad.numel() // layer.matrix_shape[0] if x.numel() else 0
                    self._meet(name, (x, grad), rows)
            if x.numel() == 0:
                return
            proposal = self._proposals.get(name)
            if proposal is None:
                proposal = self._proposals[name] = self._propose(name, x, grad)
            if proposal.candidates is None:
                return
            scores = layer.weight_grad_at(grad, x, proposal.candidates)
        proposal.scores = scores if proposal.scores is None else proposal.scores.add_(scores)

    def _meet(self, at: str | int, here: tuple[Tensor, Tensor] | None = None, rows: int = 0, note: int = 0) -> None:
        """Proposes for each layer that some rank has come to, until all have come ``at`` where this one is.

        ``here`` are the layer's input and output gradient, of that many batch ``rows``.
        """
        assert self._lockstep is not None
        while (coming := self._lockstep.next(at, rows, note)) is not None:
            name, self.batch = coming
            if self.batch.total:
                nothing = self.layers[name].weight.new_empty(0)
                x, grad = here if name == at and here is not None else (nothing, nothing)
                self._proposals[name] = self._propose(name, x, grad)
            if name == at:
                break
        self.batch = WHOLE_BATCH

    def _meet_at_the_end(self) -> None:
        """Has this rank serve, at the end of the backward pass that it is in, the layers that it did not come to.

        DistributedDataParallel waits for the other ranks' gradients after that, and they may be waiting at a layer.
        """
        task = torch._C._current_graph_task_id()
        if task in self._tasks:
            return
        self._tasks.add(task)
        if len(self._proposals) < len(self.layers):
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._meet(END))

    def _average(self, proposals: dict[str, _Proposal]) -> None:
        """Makes each rank's gradients at the candidates the mean over all ranks, as the values' gradients are."""
        assert self._lockstep is not None
        assert self.ranks is not None
        drawn = {name: each for name, each in proposals.items() if each.candidates is not None}
        patterns = {name: each.candidates for name, each in drawn.items() if each.candidates is not None}
        self._lockstep.compare_candidates(patterns, self._coming)
        scores = []
        for name, proposal in sorted(drawn.items()):
            weight = self.layers[name].weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            if proposal.scores is None:
                proposal.scores = weight.new_zeros(patterns[name].nnz, dtype=dtype)
            scores.append(proposal.scores.to(dtype))
        for (_, proposal), mean in zip(sorted(drawn.items()), self.ranks.mean(scores), strict=True):
            proposal.scores = mean

    def _propose(self, name: str, x: Tensor, grad: Tensor) -> _Proposal:
        layer = self.layers[name]
        try:
            candidates = self.propose(layer, x, grad, self._asked(layer), self._generator(name))
        except FloatingPointError as error:
            return _Proposal(problem=str(error))
        return _Proposal(Candidates.of(candidates))

    def _asked(self, layer: SparseLayer) -> int:
        # Rounded first: 0.1 * 30 is 3, not the 3.0000000000000004 that floats make of it.
        return math.ceil(round(self.share(self._coming) * layer.nnz, 9))

    def _generator(self, name: str) -> torch.Generator:
        """Of one layer at one update: the order in which backward reaches the layers does not matter."""
        text = f"{self._seed} {self._coming} {self._attempt} {name}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def _update(self, name: str, proposal: _Proposal | None) -> Outcome:
        layer = self.layers[name]
        outcome = Outcome(name, layer.nnz, layer.density, self._asked(layer))
        if not self.needs_backward:
            nothing = layer.weight.new_empty(0)
            proposal = self._propose(name, nothing, nothing)
        if proposal is None:
            outcome.problem, outcome.warned = "backward did not reach it", False
        elif proposal.candidates is None:
            outcome.problem = proposal.problem
        elif proposal.scores is None and self.needs_backward:  # an error ended backward there
            outcome.problem = "the gradients of its candidates were not computed"
        else:
            self._replace(layer, proposal.candidates, proposal.scores, outcome)
        return outcome

    def _replace(self, layer: SparseLayer, candidates: Candidates, scores: Tensor | None, outcome: Outcome) -> None:
        """Replaces the layer's edges, none where something forbids it, which perhaps only the device knows."""
        followers = [layers[outcome.layer] for layers in self.followers]
        pattern, weight = layer.pattern, layer.weight
        outcome.candidates = candidates.found
        outcome.drawn_well = candidates.finite
        if scores is not None:
            outcome.scored_well = all_finite(scores, candidates.valid)
        for follower in followers:
            outcome.followed = outcome.followed * pattern.same_edges(follower.pattern)
        good = outcome.drawn_well * outcome.scored_well * outcome.followed
        count: Number = at_most(outcome.candidates, outcome.asked) * good
        outcome.replaced = count
        if isinstance(count, int) and count == 0:
            return
        pattern.ensure_valid()
        chosen = topology_of(pattern.device).mark_candidates(candidates.row_indices, candidates.valid, scores, count)
        pruned = mark_by_magnitude(weight.detach(), count, largest=False)
        writes = Writes()
        move = Move(pruned, pattern.exchange(pruned, candidates, chosen, count, writes), writes)
        move_parameter(move, weight, self.optimizer)
        if outcome.layer in self.carried:
            move(self.carried[outcome.layer])
        for follower in followers:
            follower.pattern.copy_(pattern, writes)
            move_parameter(move, follower.weight, None)
        writes.write()
