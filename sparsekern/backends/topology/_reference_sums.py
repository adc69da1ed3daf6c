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
    height, width = ((n - 1) * step + 1 for n, step in zip(signs.shape[2:], stride, strict=True))
    images = max(1, _CHUNK // max(1, prod(x.shape[1:])))
    for part, part_signs in zip(x.split(images), signs.to(x.dtype).split(images), strict=True):
        padded = _padded(part, padding)
        for r in range(kernel_size[0]):
            for s in range(kernel_size[1]):
                y, z = r * dilation[0], s * dilation[1]
                seen = padded[:, :, y : y + height : stride[0], z : z + width : stride[1]]
                sums[:, r, s] += (seen * part_signs).sum((0, 2, 3), dtype=dtype)
    return sums.flatten()
