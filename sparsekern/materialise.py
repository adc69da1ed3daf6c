"""Gives memory and values to what of a model is on the meta device, module by module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekern.nn import SparseLayer


class Materials:
    """What has to be filled in `model`, found and checked before anything is changed.

    Args:
        model: of which some is on the meta device.
        device: where that is to be.
        leaving: modules of it that will be replaced: neither they nor their children are filled.

    Raises:
        ValueError: a module with parameters, buffers or other tensors on the meta device and no `reset_parameters`
            that could fill them, or with a lazy parameter; all such modules are named.
    """

    def __init__(self, model: nn.Module, device: torch.device, leaving: Iterable[nn.Module]) -> None:
        if device.type == "meta":
            raise ValueError("device is 'meta', where nothing is real; expected where to build the model")
        self.device = device
        left = {id(module) for root in leaving for module in root.modules()}
        problems = []
        for name, module in model.named_modules():
            if id(module) in left:
                continue
            if any(is_lazy(parameter) for parameter in module._parameters.values() if parameter is not None):
                problems.append(f"{name or 'the model'} ({type(module).__name__}): is lazy, so its sizes are not known")
            elif (held := list(_meta_tensors(module))) and _reset_of(module) is None:
                problems.append(f"{name or 'the model'} ({type(module).__name__}): {', '.join(held)}")
        if problems:
            raise ValueError(
                "these modules are on the meta device and have no reset_parameters to fill them; "
                "give them one, or build the model on a real device:\n  " + "\n  ".join(problems)
            )

    @torch.no_grad()
    def fill(self, model: nn.Module, generator: torch.Generator | None) -> None:
        """Makes all meta tensors of `model` real; tied ones stay tied.

        Raises RuntimeError for a module whose `reset_parameters` leaves one of its tensors as it is.
        """
        modules = [(name, module) for name, module in model.named_modules() if any(_meta_tensors(module))]
        made: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the old one, which must not go before, and the new one
        fresh = {name: _make_real(module, self.device, made) for name, module in modules}
        with self.device:
            for name, module in reversed(modules):  # children before the modules that hold them
                if isinstance(module, SparseLayer):
                    module.reset_parameters(generator)
                else:
                    reset = _reset_of(module)
                    assert reset is not None
                    reset()
                    self._check(name, module, fresh[name])

    @staticmethod
    def _check(name: str, module: nn.Module, fresh: dict[str, Tensor]) -> None:
        unfilled = [key for key, tensor in fresh.items() if getattr(module, key) is tensor and _is_unfilled(tensor)]
        unfilled += list(_meta_tensors(module))
        if unfilled:
            raise RuntimeError(
                f"{name or 'the model'} ({type(module).__name__}): its reset_parameters leaves {', '.join(unfilled)} "
                "unfilled, so a model that is built on the meta device would hold what happens to be in memory"
            )


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    """What fills a module's own tensors; torch has that of its attention and transformer under a private name."""
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset):
            return reset
    return None


def _meta_tensors(module: nn.Module) -> Iterator[str]:
    """Names of the module's own parameters, buffers and other tensor attributes on the meta device."""
    for store in (module._parameters, module._buffers, vars(module)):
        for key, tensor in store.items():
            if isinstance(tensor, Tensor) and tensor.is_meta:
                yield key


def _make_real(module: nn.Module, device: torch.device, made: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Puts memory in the place of a module's meta parameters and buffers, filled with a mark. Returns it by name.

    A plain attribute is left: only its module knows what it holds and can assign it.
    """
    fresh = {}
    for store in (module._parameters, module._buffers):
        for key, old in list(store.items()):
            if old is None or not old.is_meta:
                continue
            if id(old) not in made:
                new = torch.empty_like(old, device=device)
                _mark(new)
                made[id(old)] = old, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            fresh[key] = store[key] = made[id(old)][1]  # type: ignore[assignment]
    return fresh


def _mark(tensor: Tensor) -> None:
    """Fills with what no reset_parameters leaves: NaN, or the least integer."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).min)


def _is_unfilled(tensor: Tensor) -> bool:
    """Whether the mark is still somewhere in it; a bool tensor cannot tell."""
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    return tensor.dtype != torch.bool and tensor.numel() > 0 and int(tensor.min()) == torch.iinfo(tensor.dtype).min
