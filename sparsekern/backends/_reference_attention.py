"""Plain torch twins of the attention kernels: any device; differentiable, which second derivatives make use of."""

import torch
from torch import Tensor

from sparsekern.backends._reference_linear import accumulation_dtype


def _parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, T, size), queries divided by the root of the size."""
    batch, tokens, features = qkv.shape
    wide = qkv.to(accumulation_dtype(qkv.dtype)).view(batch, tokens, 3, heads, features // (3 * heads))
    query, key, value = wide.permute(2, 0, 3, 1, 4)
    return query * query.shape[-1] ** -0.5, key, value


def _joined(parts: Tensor) -> Tensor:
    """(B, heads, T, size) to (B, T, heads * size)."""
    return parts.transpose(1, 2).flatten(2)


def log_sums(qkv: Tensor, heads: int) -> Tensor:
    """The logarithms of the sums that the exponentials of each query's scores are divided by: (B, heads, T)."""
    query, key, _ = _parts(qkv, heads)
    return (query @ key.transpose(2, 3)).logsumexp(3)


def attention(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Softmax attention over qkv (B, T, 3 * heads * size), (B, T, heads * size) in its dtype; and log_sums."""
    query, key, value = _parts(qkv, heads)
    scores = query @ key.transpose(2, 3)
    sums = scores.logsumexp(3)
    return _joined((scores - sums[..., None]).exp() @ value).to(qkv.dtype), sums


def attention_backward(grad: Tensor, qkv: Tensor, log_sums: Tensor, heads: int) -> Tensor:
    """The gradient of qkv (B, T, 3 * heads * size), in its dtype."""
    query, key, value = _parts(qkv, heads)
    wide = grad.to(query.dtype).unflatten(2, (heads, value.shape[-1])).transpose(1, 2)
    weights = (query @ key.transpose(2, 3) - log_sums[..., None]).exp()
    weights_grad = wide @ value.transpose(2, 3)
    scores_grad = weights * (weights_grad - (weights * weights_grad).sum(3, keepdim=True))
    query_grad = scores_grad @ key * query.shape[-1] ** -0.5
    parts = (query_grad, scores_grad.transpose(2, 3) @ query, weights.transpose(2, 3) @ wide)
    return torch.cat([_joined(part) for part in parts], 2).to(qkv.dtype)
