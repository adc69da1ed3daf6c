"""Activations of 16 bits by feature, as the kernels take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.backends.cuda.extension import kernels, queue_of
from sparsekern.backends.cuda.slots import DTYPE_CODES

_INTERLEAVED = 32  # tokens that csrc/cuda/transpose.h takes together


@dataclass(frozen=True)
class ByFeature:
    """Activations (tokens, features), transposed.

    Attributes:
        tensor: (features, room for tokens), contiguous; zeros behind the tokens.
        tokens: how many there are.
        sums: (parts, features) float32, to be added up to the sum over the tokens, or None.
    """

    tensor: Tensor
    tokens: int
    sums: Tensor | None = None


def by_feature(x: Tensor, interleaved: bool = False, sums: bool = False) -> ByFeature:
    """Activations (tokens, features) transposed, into memory of their own size; as they are where they lie so already.

    Args:
        interleaved: the order of the tokens, see csrc/cuda/transpose.h.
        sums: whether they are added up on the way.
    """
    tokens, features = x.shape
    lies_so = x.stride() == (1, tokens) and tokens % 8 == 0 and x.data_ptr() % 16 == 0
    if lies_so and not interleaved and not sums:
        return ByFeature(x.t(), tokens)
    if x.stride(1) != 1 and features > 1:
        x = x.contiguous()
    room = -(-tokens // _INTERLEAVED) * _INTERLEAVED
    out = torch.empty(features, room, dtype=x.dtype, device=x.device)
    added = torch.empty(room // _INTERLEAVED, features, device=x.device) if sums else None
    kernels().transpose_halves(
        queue_of(x),
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        tokens,
        features,
        x.stride(0),
        out.data_ptr(),
        room,
        interleaved,
        0 if added is None else added.data_ptr(),
    )
    return ByFeature(out, tokens, added)
