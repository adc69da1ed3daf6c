"""Sums of a batch's activations in plain torch, without unfolding a convolution's input."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a temporary product.
_CHUNK = 1 << 24


def sum_magnitudes(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, 1, dims, dtype=dtype)


def _padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]))


def window_sums(
    plane: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> Tensor:
    padded = _padded(plane.double(), padding).contiguous()
    channel, line, pixel = padded.stride()
    # A view of what each tap sees, which is summed as it is read.
    seen = padded.as_strided(
        (plane.shape[0], *kernel_size, *out_size),
        (channel, dilation[0] * line, dilation[1] * pixel, stride[0] * line, stride[1] * pixel),
    )
    return seen.sum((3, 4)).flatten().to(plane.dtype)


def signed_sums(
    x: Tensor,
    signs: Tensor,
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = torch.zeros(x.shape[1], *kernel_size, dtype=dtype, device=x.device)
    axes = [
        [
            _reached(x.shape[2 + axis], signs.shape[2 + axis], stride[axis], padding[axis], tap * dilation[axis])
            for tap in range(kernel_size[axis])
        ]
        for axis in range(2)
    ]
    images = max(1, _CHUNK // max(1, prod(x.shape[1:])))
    for part, part_signs in zip(x.split(images), signs.to(x.dtype).split(images), strict=True):
        for r, (lines, out_lines) in enumerate(axes[0]):
            for s, (pixels, out_pixels) in enumerate(axes[1]):
                seen = part[:, :, lines, pixels] * part_signs[:, :, out_lines, out_pixels]
                sums[:, r, s] += seen.sum((0, 2, 3), dtype=dtype)
    return sums.flatten()


def _reached(size: int, outputs: int, stride: int, padding: int, offset: int) -> tuple[slice, slice]:
    """Along one axis: the inputs, padding aside, that a tap at ``offset`` sees, and the outputs it sees them for."""
    first = max(0, -((offset - padding) // stride))
    end = max(first, min(outputs, (size - 1 + padding - offset) // stride + 1))
    begin = first * stride + offset - padding
    return slice(begin, max(begin, begin + (end - first - 1) * stride + 1), stride), slice(first, end)
