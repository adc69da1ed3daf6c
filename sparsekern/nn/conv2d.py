"""A 2-D convolution with sparse filters."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.modules.utils import _pair

from sparsekern.nn.layer import SparseLayer, dense_pattern
from sparsekern.ops import functional
from sparsekern.ops.autograd import Geometry
from sparsekern.pattern import Pattern

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SparseConv2d(SparseLayer):
    """2-D cross-correlation with sparse filters; takes the place of ``torch.nn.Conv2d``, argument for argument.

    The weight is the matrix (out_channels, in_channels // groups * kh * kw): column (c * kh + r) * kw + s is
    position (r, s) of the kernel on channel c of the group.

    Args:
        in_channels, out_channels: channels of the input and the output.
        kernel_size, stride, padding, dilation: an integer or a pair (height, width); padding also 'valid' or 'same'.
        groups: blocks of channels that are convolved apart; divides both channel counts.
        bias: adds a learnable dense bias.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        device: where the values and indices live.
        dtype: of the values.
        density: share of the weight's places that are edges, in (0, 1], drawn uniformly.
        pattern: the topology itself, of the weight matrix's shape, instead of ``density``.
        generator: of the random topology and values; default torch's own.

    Shapes: input (N, in_channels, H, W) or (in_channels, H, W), output as torch.nn.Conv2d's.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        pattern: Pattern | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if groups < 1:
            raise ValueError(f"groups is {groups}; expected a positive integer")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or channels % groups:
                raise ValueError(f"{name} is {channels}; expected a positive multiple of groups, {groups}")
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode is {padding_mode!r}; expected one of {', '.join(_PADDING_MODES)}")
        kernel = _size_pair("kernel_size", kernel_size, 1)
        strides = _size_pair("stride", stride, 1)
        dilations = _size_pair("dilation", dilation, 1)
        before, after = _padding_pairs(padding, kernel, strides, dilations)
        super().__init__(
            (out_channels, in_channels // groups * kernel[0] * kernel[1]),
            bias,
            density,
            pattern,
            generator,
            device,
            dtype,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = strides
        self.padding = padding if isinstance(padding, str) else before
        self.dilation = dilations
        self.groups = groups
        self.padding_mode = padding_mode
        # The kernels pad with zeros, alike on both sides; anything else is padded before the product.
        inside = padding_mode == "zeros" and before == after
        self.product_padding = before if inside else (0, 0)
        self._padded_before = None if inside else (before[1], after[1], before[0], after[0])

    @property
    def geometry(self) -> Geometry:
        """kernel_size, stride, zero padding and dilation of the product itself, and groups."""
        return self.kernel_size, self.stride, self.product_padding, self.dilation, self.groups

    @classmethod
    def from_dense(cls, module: nn.Conv2d, density: float | None = None, mask: Tensor | None = None) -> "SparseConv2d":
        """The sparse layer that keeps a dense one's values where ``mask`` is nonzero, or its largest at ``density``."""
        weight = module.weight
        shape = (module.out_channels, weight[0].numel())
        layer = cls(
            **conv2d_arguments(module),
            device=weight.device,
            dtype=weight.dtype,
            pattern=dense_pattern(weight, shape, density, mask),
        )
        layer._take_dense(module)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self._padded_before is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._padded_before, mode=mode)
        y = functional.conv2d(x, self.weight, self.pattern, self.geometry, self.bias)
        return self._watched(x, y)

    def weight_grad_at(self, grad: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        grad, x = self._batched(grad, x)
        return torch.ops.sparsekern.conv2d_weight_grad(
            grad, x, pattern.ccol_indices, pattern.row_indices, *self.geometry
        )

    def dense_weight_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        grad, x = self._batched(grad, x)
        dense = conv2d_weight(
            x, self.dense_shape(), grad, self.stride, self.product_padding, self.dilation, self.groups
        )
        return dense.view(self.matrix_shape)

    @staticmethod
    def _batched(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # Under autocast the product's input was cast, and the gradient has that dtype.
        x = x.to(grad.dtype)
        return (grad, x) if x.dim() == 4 else (grad.unsqueeze(0), x.unsqueeze(0))

    def dense_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}",
            f"density={self.density:.4g}, nnz={self.nnz}",
        ]
        optional = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        parts += [f"{name}={getattr(self, name)}" for name, plain in optional.items() if getattr(self, name) != plain]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


def conv2d_arguments(module: nn.Conv2d) -> dict[str, Any]:
    """A dense convolution's constructor arguments, but for device and dtype."""
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
        "bias": module.bias is not None,
        "padding_mode": module.padding_mode,
    }


def _size_pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = tuple(_pair(value))
    if len(pair) != 2 or any(not isinstance(size, int) or size < least for size in pair):
        raise ValueError(f"{name} is {value!r}; expected an integer or a pair of integers of at least {least}")
    return pair


def _padding_pairs(
    padding: int | tuple[int, int] | str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding (height, width) before and after the image."""
    if not isinstance(padding, str):
        both = _size_pair("padding", padding, 0)
        return both, both
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f"padding is {padding!r}; expected integers, 'valid' or 'same'")
    if stride != (1, 1):
        raise ValueError(f"stride is {stride} with padding 'same'; expected 1")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before = (total[0] // 2, total[1] // 2)
    return before, (total[0] - before[0], total[1] - before[1])
