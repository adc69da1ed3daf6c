"""Ghost skip connections: the branch beside a 3x3 convolution, and its hold on the model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from sparsekern.nn import BatchNorm2d, SparseConv2d, SparseLayer
from sparsekern.tost.phase import Phase
from sparsekern.tost.survey import Conv

BRANCHES = ("sparse", "free")
# Of a branch's convolution, in the published code. Its norm's eps outweighs the variance of what they give at first.
INITIAL_WEIGHT = 1e-4


class Branch(nn.Module):
    """What goes past a convolution, times a coefficient: ``forward(x, onto, coefficient)``, onto a sum or None.

    It sees what the middle of the 3x3 kernel sees: the input moved by the difference of padding and dilation, with
    the convolution's stride.
    """

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        height, width = (p - d for p, d in zip(_padding(conv), conv.dilation, strict=True))
        self.margin = (width, width, height, height)
        self.stride = conv.stride

    def centred(self, x: Tensor) -> Tensor:
        return F.pad(x, self.margin) if any(self.margin) else x


class SparseBranch(Branch):
    """A 1x1 convolution of all equal weights, as sparse as the 3x3 one or of a density given, and its norm.

    It is dense beside a dense convolution of which no other density is asked. The topology is random and static.
    """

    def __init__(self, conv: Conv, density: float | None, generator: Generator | None) -> None:
        super().__init__(conv)
        if density is None:
            density = conv.density if isinstance(conv, SparseLayer) else 1.0
        size: dict[str, Any] = {
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": 1,
            "stride": conv.stride,
            "groups": conv.groups,
            "bias": False,
            "device": conv.weight.device,
            "dtype": conv.weight.dtype,
        }
        self.conv: nn.Conv2d | SparseConv2d
        if density == 1 and not isinstance(conv, SparseLayer):
            self.conv = nn.Conv2d(**size)
        else:
            self.conv = SparseConv2d(**size, density=density, generator=generator)
        nn.init.constant_(self.conv.weight, INITIAL_WEIGHT)
        self.norm = BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)

    def forward(self, x: Tensor, onto: Tensor | None, coefficient: Tensor) -> Tensor:
        # coefficient * norm(y) is the norm whose weight and bias are multiplied: no pass over the images is added.
        scaled = {name: parameter * coefficient for name, parameter in self.norm.named_parameters()}
        return functional_call(self.norm, scaled, (self.conv(self.centred(x)), onto))


class FreeBranch(Branch):
    """Every stride-th pixel, missing channels filled with zeros on both sides. No parameters, no norm."""

    def __init__(self, conv: Conv) -> None:
        super().__init__(conv)
        missing = conv.out_channels - conv.in_channels
        self.channels = (missing // 2, missing - missing // 2)

    def forward(self, x: Tensor, onto: Tensor | None, coefficient: Tensor) -> Tensor:
        past = self.centred(x)[:, :, :: self.stride[0], :: self.stride[1]]
        if any(self.channels):
            past = F.pad(past, (0, 0, 0, 0, *self.channels))
        return past * coefficient if onto is None else torch.addcmul(onto, past, coefficient)


class Skip:
    """A branch from the input of a convolution to behind its norm, before the activation.

    The model keeps its modules: a hook on the convolution holds its input until a hook on the norm adds the branch, to
    the residual of a norm that takes one and may end in a ReLU, to the output of any other. The branch is no part of
    the model's module tree. Copies of the model call the same branch.
    """

    def __init__(self, conv_name: str, conv: Conv, norm_name: str, norm: nn.Module, branch: Branch, phase: Phase):
        self.conv_name, self.norm_name, self.branch = conv_name, norm_name, branch
        self._phase = phase
        self._input: Tensor | None = None
        self._handles = [conv.register_forward_hook(self._hold, with_kwargs=True)]
        if isinstance(norm, BatchNorm2d):
            self._handles.append(norm.register_forward_pre_hook(self._add_residual, with_kwargs=True))
        else:
            self._handles.append(norm.register_forward_hook(self._add_output))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Skip:
        return self

    def _hold(self, conv: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not self._phase.over:
            x = args[0] if args else kwargs["input"]
            self._input = x.to(output.dtype)  # under autocast an image may be wider than the activations

    def _add_residual(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._phase.over:
            return None
        input, residual = _norm_arguments(*args, **kwargs)
        return (input, self._past(norm, residual)), {}

    def _add_output(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if self._phase.over else self._past(norm, output)

    def _past(self, norm: nn.Module, onto: Tensor | None) -> Tensor:
        x, self._input = self._input, None
        if x is None:
            raise RuntimeError(
                f"norm {self.norm_name!r} was called without its convolution {self.conv_name!r}, whose input its "
                "ghost skip connection adds: name it in exclude"
            )
        if isinstance(self.branch, SparseBranch):
            # A frozen norm, or one that does not track: the branch's does as it does.
            self.branch.norm.training = norm.training
            self.branch.norm.track_running_stats = getattr(norm, "track_running_stats", True)
        return self.branch(x, onto, self._phase.coefficient)


def _padding(conv: Conv) -> tuple[int, ...]:
    if isinstance(conv.padding, str):
        return conv.dilation if conv.padding == "same" else (0, 0)
    return conv.padding


def _norm_arguments(input: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return input, residual
