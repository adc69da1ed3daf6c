"""`ToST`: ghosts in a model for the first steps of its training."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekern.nn import BatchNorm2d, SparseConv2d
from sparsekern.tost.phase import Phase
from sparsekern.tost.skip import BRANCHES, Branch, FreeBranch, Skip, SparseBranch
from sparsekern.tost.soft import SOFT, SoftReLU
from sparsekern.tost.survey import Conv, survey

_CEILINGS: dict[type[nn.Module], float | None] = {nn.ReLU: None, nn.ReLU6: 6.0}


@dataclass(frozen=True)
class TostReport:
    """What `ToST` attached, by qualified names. `print` it."""

    neurons: tuple[str, ...]  # nn.ReLU, nn.ReLU6 and norms with a ReLU, which is soft now
    skips: tuple[tuple[str, str, str], ...]  # 3x3 convolution, its norm, and what goes past them
    left: tuple[tuple[str, str], ...]  # what the recipe does not fit, and why

    @property
    def brief(self) -> str:
        """How much was attached, and what was left."""
        return "\n".join([self._counts(), *_lines(self._left_rows())])

    def __str__(self) -> str:
        rows = [(name, "soft") for name in self.neurons]
        rows += [(conv, f"{what}, added behind {norm}") for conv, norm, what in self.skips]
        return "\n".join([self._counts(), *_lines(rows + self._left_rows())])

    def _counts(self) -> str:
        return f"ghost soft neurons: {len(self.neurons)}, ghost skip connections: {len(self.skips)}"

    def _left_rows(self) -> list[tuple[str, str]]:
        return [(name or "the model", f"left: {reason}") for name, reason in self.left]


def _lines(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name.ljust(width)}  {what}" for name, what in rows]


class ToST:
    """Ghost soft neurons and ghost skip connections (ToST, arXiv 2206.12755, section 3), annealed and then removed.

    Call :meth:`step` after every ``optimizer.step()``, beside that of a :class:`sparsekern.growth.Growth`::

        tost = sparsekern.ToST(model, optimizer, steps=2000)
        ...
        optimizer.step()
        tost.step()

    At step t (0 for the first) of the phase of ``steps``

    - every nn.ReLU, nn.ReLU6 and ReLU of a ``sparsekern.nn.BatchNorm2d`` is ``f(beta x) / beta``, f(x) = x sigmoid(x)
      for ``neuron="swish"``, with beta = ``beta`` / (1 - t / steps);
    - every 3x3 convolution with a norm behind it, as tracing the model's forward shows, has a branch beside it that is
      added before the activation: norm(conv(x)) + c branch(x), with c = (1 + cos(pi t / steps)) / 2.

    After the last of these steps beta is infinite and c is 0: the modules are the plain ones again, and nothing is
    left, neither in the model nor in the optimizer. (The published code keeps both to the end.)

    During the phase too, modules, parameters and state_dict of the model are the plain model's, but for nn.ReLU in
    whose place a module without parameters is. The branches are held by this object: move the model to its device and
    dtype before; save ``tost.state_dict()`` in checkpoints beside the model's; clip the gradients of
    ``tost.parameters()`` along, where gradients are clipped. Their parameters join the optimizer's groups of the
    convolution's and the norm's weights, and their gradients are dropped by :meth:`step`. A deep copy of the model
    (an average, say) shares the branches and the phase; a pickled one takes its own along, which no step anneals. A
    branch's topology stays as it was drawn under any growth.

    Args:
        model: the model, sparse or not, on its device.
        optimizer: holds the model's parameters.
        steps: length of the phase in optimizer steps, at least 1.
        ghost_neurons: whether ReLUs are softened.
        ghost_skips: whether convolutions get a branch.
        neuron: f: "swish", "gelu", "mish", "elu" or "softplus".
        beta: at step 0, above 0. The published SiLU is swish at 1, PSwish at 2.
        branch: "sparse": a 1x1 convolution, weights 1e-4, and a batch norm; "free": the input itself, strided and
            padded with channels of zeros, without parameters.
        branch_density: of sparse branches, in (0, 1]; None takes each convolution's own (a dense one's is 1).
        exclude: patterns (as in fnmatch) of names of ReLUs, norms and convolutions to leave alone.
        generator: CPU generator of the branches' topologies; torch's default one if None.

    Raises:
        TypeError, ValueError: naming the argument that does not fit. The model is then unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps: int,
        ghost_neurons: bool = True,
        ghost_skips: bool = True,
        neuron: str = "swish",
        beta: float = 1.0,
        branch: str = "sparse",
        branch_density: float | None = None,
        exclude: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        _check(model, optimizer, steps, neuron, beta, branch, branch_density, exclude)
        self.optimizer = optimizer
        self._config = {
            "steps": steps,
            "ghost_neurons": ghost_neurons,
            "ghost_skips": ghost_skips,
            "neuron": neuron,
            "beta": beta,
            "branch": branch,
        }
        self._phase = Phase(steps, beta)
        self._exclude = tuple(exclude)
        self._left: list[tuple[str, str]] = []
        self._relus: dict[str, tuple[nn.Module, SoftReLU, list[nn.Module]]] = {}  # its places' parents
        self._soft_norms: dict[str, tuple[BatchNorm2d, Any]] = {}
        self._skips: list[Skip] = []
        found = survey(model)
        try:
            if ghost_skips:
                modules = dict(model.named_modules())
                for conv, norm in found.pairs.items():
                    self._attach_skip(conv, modules[conv], norm, modules[norm], branch, branch_density, generator)
                self._left += found.unpaired.items()
                if not found.pairs and not found.unpaired:
                    self._left.append(("", "no 3x3 convolution"))
            if ghost_neurons:
                self._soften(model, neuron)
        except BaseException:  # a branch for which there is no memory, say
            self.finish()
            raise
        if ghost_neurons:
            for name, count in found.functional.items():
                self._left.append((name, f"calls {count} ReLU{'s'[: count > 1]} as a function: make it an nn.ReLU"))
            if not self._relus and not self._soft_norms and not found.functional:
                self._left.append(("", "no ReLU"))
        for name in found.untraced:
            self._left.append((name, "its forward cannot be traced: what it calls itself is not seen"))
        self.report = TostReport(
            neurons=(*self._relus, *self._soft_norms),
            skips=tuple((skip.conv_name, skip.norm_name, _describe(skip.branch)) for skip in self._skips),
            left=tuple(self._left),
        )

    @property
    def steps(self) -> int:
        """Steps of the phase that are done."""
        return self._phase.step

    @property
    def over(self) -> bool:
        """Whether the phase has ended and the model is the plain one."""
        return self._phase.over

    @property
    def beta(self) -> float:
        """Of the soft neurons in the coming step; infinite once they are ReLUs."""
        return self._phase.beta.item()

    @property
    def coefficient(self) -> float:
        """Of the branches in the coming step."""
        return self._phase.coefficient.item()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the branches; none once the phase is over."""
        return itertools.chain.from_iterable(skip.branch.parameters() for skip in self._skips)

    def step(self) -> None:
        """Counts a step, anneals, and after the last one removes the ghosts."""
        if self.over:
            return
        self._phase.move_to(self._phase.step + 1)
        for parameter in self.parameters():
            parameter.grad = None  # a loop that clears the gradients by model.zero_grad() does not know them
        if self._phase.step == self._phase.steps:
            self.finish()

    def finish(self) -> None:
        """Ends the phase here: the model is the plain one. Before its last step the function jumps."""
        if self.over:
            return
        self._phase.move_to(self._phase.steps)
        self._phase.over = True
        for original, soft, parents in self._relus.values():
            original.train(soft.training)
            _replace(parents, soft, original)
        for norm, handle in self._soft_norms.values():
            handle.remove()
            norm.activation = "relu"
        for skip in self._skips:
            skip.remove()
            for parameter in skip.branch.parameters():
                _drop(self.optimizer, parameter)
        self._relus, self._soft_norms, self._skips = {}, {}, []

    def state_dict(self) -> dict[str, Any]:
        """Where the phase is, and the branches; to be saved beside the model's and the optimizer's."""
        return {
            "config": dict(self._config),
            "step": self._phase.step,
            "branches": {skip.conv_name: skip.branch.state_dict() for skip in self._skips},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken. Call it before the optimizer's: it may end the phase.

        Raises:
            ValueError: if the state is of another configuration, of other branches, or from before the end of a phase
                that is over here; names the difference.
        """
        theirs = state["config"]
        for key in {**self._config, **theirs}:
            if theirs.get(key) != self._config.get(key):
                raise ValueError(f"the state has {theirs.get(key)!r} for {key}; expected {self._config.get(key)!r}")
        step = int(state["step"])
        if step >= self._phase.steps:
            self.finish()
            return
        if self.over:
            raise ValueError(
                f"the state is of step {step}, and the ghosts are removed here: make a new ToST to load it"
            )
        branches = {skip.conv_name: skip.branch for skip in self._skips}
        if state["branches"].keys() != branches.keys():
            odd = min(state["branches"].keys() ^ branches.keys())
            raise ValueError(f"convolution {odd!r} has a branch in the state or here, and not in the other")
        for name, branch in branches.items():
            try:
                branch.load_state_dict(state["branches"][name])
            except RuntimeError as error:
                raise ValueError(f"the branch of convolution {name!r} does not fit: {error}") from error
        self._phase.move_to(step)

    def _excluded(self, *names: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in self._exclude)

    def _attach_skip(
        self,
        conv_name: str,
        conv: Conv,
        norm_name: str,
        norm: nn.Module,
        kind: str,
        density: float | None,
        generator: torch.Generator | None,
    ) -> None:
        group = _group_of(self.optimizer, conv.weight)
        if self._excluded(conv_name, norm_name):
            self._left.append((conv_name, "excluded"))
        elif kind == "free" and conv.out_channels < conv.in_channels:
            channels = f"{conv.in_channels} to {conv.out_channels} channels"
            self._left.append((conv_name, f"from {channels} there is no branch without parameters"))
        elif kind == "free":
            self._skips.append(Skip(conv_name, conv, norm_name, norm, FreeBranch(conv), self._phase))
        elif group is None or not conv.weight.requires_grad:
            self._left.append((conv_name, "its weight is not trained by the optimizer"))
        else:
            branch = SparseBranch(conv, density, generator)
            _join(group, conv_name, branch.conv)
            _join(_group_of(self.optimizer, getattr(norm, "weight", None)) or group, conv_name, branch.norm)
            self._skips.append(Skip(conv_name, conv, norm_name, norm, branch, self._phase))

    def _soften(self, model: nn.Module, neuron: str) -> None:
        parents: dict[nn.Module, list[nn.Module]] = defaultdict(list)
        for parent in model.modules():
            for child in parent.children():
                parents[child].append(parent)
        for name, module in list(model.named_modules()):
            fused = isinstance(module, BatchNorm2d) and module.activation is not None
            if not fused and not isinstance(module, tuple(_CEILINGS)):
                continue
            reason = self._why_not_soft(name, module, parents[module])
            if reason:
                self._left.append((name, reason))
            elif isinstance(module, BatchNorm2d):
                module.activation = None
                soft = _SoftOutput(SoftReLU(self._phase, neuron))
                self._soft_norms[name] = module, module.register_forward_hook(soft)
            else:
                relu = SoftReLU(self._phase, neuron, _CEILINGS[type(module)])
                relu.__dict__.update(vars(module))  # mode, hooks and whether it works in place, the very same objects
                _replace(parents[module], module, relu)
                self._relus[name] = module, relu, parents[module]

    def _why_not_soft(self, name: str, module: nn.Module, parents: list[nn.Module]) -> str:
        if self._excluded(name):
            return "excluded"
        if isinstance(module, BatchNorm2d):
            return "" if module.activation == "relu" else f"its activation is {module.activation!r}"
        if type(module) not in _CEILINGS or "forward" in vars(module):
            return f"is a {type(module).__name__} with a forward of its own"
        if not parents:
            return "is the model itself, with no parent to be replaced in"
        if any(isinstance(parent, nn.TransformerEncoderLayer) for parent in parents):
            return "torch's fused encoder layer computes its own ReLU in evaluation"
        return ""


class _SoftOutput:
    """A forward hook on a fused norm, which leaves its ReLU to this one. Copies of the model share it."""

    def __init__(self, soft: SoftReLU) -> None:
        self.soft = soft

    def __call__(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.soft(output)


def _check(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    neuron: str,
    beta: float,
    branch: str,
    branch_density: float | None,
    exclude: Sequence[str],
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected an integer of at least 1, in optimizer steps")
    if neuron not in SOFT:
        raise ValueError(f"neuron is {neuron!r}; expected one of {', '.join(SOFT)}")
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta is {beta!r}; expected a positive number")
    if branch not in BRANCHES:
        raise ValueError(f"branch is {branch!r}; expected one of {', '.join(BRANCHES)}")
    if branch_density is not None and not 0 < branch_density <= 1:
        raise ValueError(f"branch_density is {branch_density!r}; expected a number in (0, 1] or None")
    if isinstance(exclude, str):
        raise TypeError(f"exclude is the string {exclude!r}; expected a sequence of name patterns")


def _describe(branch: Branch) -> str:
    if isinstance(branch, SparseBranch):
        edges = branch.conv.nnz if isinstance(branch.conv, SparseConv2d) else branch.conv.weight.numel()
        return f"1x1 convolution of {edges:,} weights"
    return "the input itself"


def _replace(parents: list[nn.Module], old: nn.Module, new: nn.Module) -> None:
    for parent in parents:
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _group_of(optimizer: Optimizer, parameter: Tensor | None) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(each is parameter for each in group["params"]):
            return group
    return None


def _join(group: dict[str, Any], name: str, module: nn.Module) -> None:
    """Puts a branch's parameters into a group that is there: schedules, decay and rates go for them as for the rest."""
    for key, parameter in module.named_parameters():
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(f"{name}.ghost.{key}")


def _drop(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        for index, each in enumerate(group["params"]):
            if each is parameter:
                del group["params"][index]
                if "param_names" in group:
                    del group["param_names"][index]
                break
    optimizer.state.pop(parameter, None)
