"""Replaces a model's norms and activations by the library's fused ones, in place, and says what it did."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from sparsekern.nn import GELU, BatchNorm2d

_FORWARD_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` did, by qualified names. `print` it."""

    norms: tuple[str, ...]  # nn.BatchNorm2d that are sparsekern.nn.BatchNorm2d now
    merged: tuple[tuple[str, str], ...]  # (norm, nn.ReLU behind it that it took in)
    activations: tuple[str, ...]  # nn.GELU that are sparsekern.nn.GELU now

    def __str__(self) -> str:
        relus = dict(self.merged)
        lines = [f"{name}: BatchNorm2d" + (f" with {relus[name]}" if name in relus else "") for name in self.norms]
        lines += [f"{name}: BatchNorm2d takes in {relu}" for name, relu in self.merged if name not in self.norms]
        lines += [f"{name}: GELU" for name in self.activations]
        return "\n".join(lines) if lines else "nothing to fuse"


def fuse(model: nn.Module) -> FusionReport:
    """Replaces `model`'s nn.BatchNorm2d and nn.GELU by `sparsekern.nn`'s, in place; works on any model, any time.

    The new modules hold the old ones' parameters, buffers and hooks, so that optimizers, state_dict and checkpoints
    go on as they were; training mode stays. An nn.ReLU directly behind a batch norm in an nn.Sequential becomes part
    of it, an nn.Identity its place: what reads the norm's own output by index or hook would see it clamped, so a norm
    or ReLU with hooks is not merged, nor a norm that is used at several places. A `parent.norm(x)` written in a
    forward function is not looked into: there, use `sparsekern.nn.BatchNorm2d` with its `activation` and `residual`.

    Results agree with the replaced modules' to rounding. Subclasses (SyncBatchNorm, lazy ones), modules with
    parametrizations or an own `forward`, and a module that is `model` itself are left alone. Calling it again finds
    nothing new.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    norms = _replace(model, nn.BatchNorm2d, BatchNorm2d)
    activations = _replace(model, nn.GELU, GELU)
    return FusionReport(norms, _merge_relus(model), activations)


def _replace(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> tuple[str, ...]:
    """Puts a `new` in each place of an `old`, one for one where a module has several. Returns the first names."""
    twins: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules()):
        if name and type(module) is old and "forward" not in vars(module) and not parametrize.is_parametrized(module):
            twins[id(module)] = _twin(module, new)
            names.append(name)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if id(child) in twins:
                parent._modules[key] = twins[id(child)]
    return tuple(names)


def _twin(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """A `cls` that is `module` in everything else: parameters, buffers, hooks, mode, the very same objects."""
    twin = cls.__new__(cls)
    twin.__dict__.update(vars(module))
    if isinstance(twin, BatchNorm2d):
        twin.activation = None
    return twin


def _merge_relus(model: nn.Module) -> tuple[tuple[str, str], ...]:
    uses: dict[int, int] = defaultdict(int)
    for parent in model.modules():
        for child in parent._modules.values():
            uses[id(child)] += 1
    merged = []
    for name, parent in list(model.named_modules()):
        if type(parent).forward is not nn.Sequential.forward:
            continue
        children = list(parent._modules.items())
        for (key, norm), (next_key, relu) in itertools.pairwise(children):
            if (
                type(norm) is BatchNorm2d
                and norm.activation is None
                and type(relu) is nn.ReLU
                and uses[id(norm)] == 1
                and not _has_hooks(norm)
                and not _has_hooks(relu)
            ):
                norm.activation = "relu"
                parent._modules[next_key] = nn.Identity().train(relu.training)
                prefix = f"{name}." if name else ""
                merged.append((prefix + key, prefix + next_key))
    return tuple(merged)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _FORWARD_HOOKS)
