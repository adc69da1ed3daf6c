"""Multi-head attention whose projections are sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.nn.dense import dense_projections
from sparsekern.nn.linear import SparseLinear
from sparsekern.ops.attention import attention


class SparseMultiheadAttention(nn.Module):
    """Takes the place of ``torch.nn.MultiheadAttention``: its arguments, its forward and its results.

    The projections are SparseLinear: ``in_proj`` (3 * embed_dim, embed_dim), of which the first rows make the queries,
    then the keys, then the values; or, where they are not packed, ``q_proj``, ``k_proj`` and ``v_proj``; and
    ``out_proj``. A packed projection of queries that are not the keys, or keys that are not the values, is computed of
    each of them whole and used in part: attention to other tokens is better not packed.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as of
            torch.nn.MultiheadAttention.
        density: of each projection, in (0, 1].
        packed: whether queries, keys and values come from one projection; by default where all have embed_dim
            features.
        generator: of the random topologies and values.
        projections: the projections themselves, by name, instead of ``density``.

    Shapes: as of torch.nn.MultiheadAttention; ``need_weights=False`` is the fast way.

    Raises:
        ValueError: naming the argument that is out of range; in forward a mask of another shape, or ``is_causal``
            without ``attn_mask``.
        TypeError: in forward, a mask that is neither bool nor floating point.
    """

    in_proj: SparseLinear | None  # None where the three are separate, which else are None
    q_proj: SparseLinear
    k_proj: SparseLinear
    v_proj: SparseLinear
    out_proj: SparseLinear
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        packed: bool | None = None,
        generator: torch.Generator | None = None,
        projections: Mapping[str, SparseLinear] | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim is {embed_dim}; expected a positive multiple of num_heads, {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        # Under torch's own name: encoder layers read it.
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        if packed and not self._qkv_same_embed_dim:
            raise ValueError(
                f"packed is True, with kdim {self.kdim} and vdim {self.vdim}; expected {embed_dim} of both"
            )
        packed = self._qkv_same_embed_dim if packed is None else packed
        if (density is None) == (projections is None):
            given = "missing" if projections is None else "given"
            raise ValueError(f"density is {density} and projections are {given}; expected one of the two")
        shapes = projection_shapes(embed_dim, self.kdim, self.vdim, packed)
        if projections is None:
            projections = {
                name: SparseLinear(columns, rows, bias, device, dtype, density=density, generator=generator)
                for name, (rows, columns) in shapes.items()
            }
        elif {name: layer.matrix_shape for name, layer in projections.items()} != shapes:
            raise ValueError(f"projections are {dict(projections)}; expected {shapes}")
        for name in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj"):
            self.register_module(name, projections.get(name))
        for name in ("bias_k", "bias_v"):
            empty = torch.empty(1, 1, embed_dim, device=device, dtype=dtype) if add_bias_kv else None
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    @classmethod
    def from_dense(cls, module: nn.MultiheadAttention, density: float) -> SparseMultiheadAttention:
        """The sparse attention that keeps the largest weights of each of a dense one's projections."""
        packed = module._qkv_same_embed_dim
        projections = {
            name: SparseLinear.from_dense(linear, density) for name, linear in dense_projections(module, packed).items()
        }
        return cls.from_projections(module, projections)

    @classmethod
    def from_projections(
        cls, module: nn.MultiheadAttention, projections: Mapping[str, SparseLinear]
    ) -> SparseMultiheadAttention:
        """A dense attention's twin in all but the projections; ``bias_k`` and ``bias_v`` are the very same."""
        twin = cls(
            module.embed_dim,
            module.num_heads,
            module.dropout,
            add_zero_attn=module.add_zero_attn,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            packed="in_proj" in projections,
            projections=projections,
        )
        for name in ("bias_k", "bias_v"):
            twin.register_parameter(name, getattr(module, name))
        twin.training = module.training
        return twin

    @property
    def in_proj_bias(self) -> Tensor | None:
        """(3 * embed_dim,), as torch.nn.MultiheadAttention has it, or None."""
        if self.in_proj is not None:
            return self.in_proj.bias
        layers = (self.q_proj, self.k_proj, self.v_proj)
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        return torch.cat(biases) if biases else None

    def reset_parameters(self) -> None:
        """Draws ``bias_k`` and ``bias_v`` anew, as torch does; the projections have this function of their own."""
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.xavier_normal_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, attention weights or None), as torch.nn.MultiheadAttention's forward.

        Args:
            query: (L, N, embed_dim), (N, L, embed_dim) with ``batch_first``, or (L, embed_dim).
            key, value: of kdim and vdim features, S in the place of L.
            key_padding_mask: (N, S) or, without a batch, (S,): True, or what is added to the scores, of the keys that
                nothing attends to.
            need_weights: returns the weights after the softmax too.
            attn_mask: (L, S) or (N * num_heads, L, S), True, or what is added, where a query does not attend to a key.
            average_attn_weights: over the heads: (N, L, S) in place of (N, num_heads, L, S).
            is_causal: a hint that ``attn_mask`` is the causal one.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is None; expected the causal mask")
        batched, batch_first = query.dim() == 3, self.batch_first
        if not batched:
            same_key, same_value = key is query, value is key
            query = query.unsqueeze(0)
            key = query if same_key else key.unsqueeze(0)
            value = key if same_value else value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
            batch_first = True
        keys = key.shape[1 if batch_first else 0]
        dropout = self.dropout if self.training else 0.0
        plain = attn_mask is None and key_padding_mask is None and self.bias_k is None and not self.add_zero_attn
        weights = None
        if self._is_one_product(query, key, value) and plain and not need_weights and dropout == 0.0:
            assert self.in_proj is not None
            qkv = self.in_proj(query)
            mixed = attention(qkv if batch_first else qkv.transpose(0, 1), self.num_heads)
        else:
            q, k, v = self._projected(query, key, value)
            if not batch_first:
                q, k, v = (x.transpose(0, 1) for x in (q, k, v))
            k, v = self._with_extra_tokens(k, v)
            q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
            # The hint spares the mask where nothing else has to be added to it.
            causal = is_causal and key_padding_mask is None and not need_weights and k.shape[2] == keys
            mask = None if causal else self._mask(q, keys, attn_mask, key_padding_mask)
            if mask is not None:
                mask = F.pad(mask, (0, k.shape[2] - keys))
            if need_weights:
                scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
                weights = F.dropout((scores if mask is None else scores + mask).softmax(dim=-1), dropout)
                mixed = weights @ v
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
            mixed = mixed.transpose(1, 2).flatten(2)
        output = self.out_proj(mixed if batch_first else mixed.transpose(0, 1))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output, weights

    def _is_one_product(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether one packed product makes all and the fused kernel for the CPU takes it from there."""
        on_cpu = query.device.type in ("cpu", "meta")
        return self.in_proj is not None and query is key and key is value and on_cpu

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (..., embed_dim)."""
        if self.in_proj is None:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        parts = {id(x): x for x in (query, key, value)}
        products = {name: self.in_proj(x).chunk(3, dim=-1) for name, x in parts.items()}
        return products[id(query)][0], products[id(key)][1], products[id(value)][2]

    def _with_extra_tokens(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, S, embed_dim) with those of add_bias_kv and add_zero_attn behind them."""
        extra = []
        if self.bias_k is not None and self.bias_v is not None:
            extra.append((self.bias_k.to(k.dtype), self.bias_v.to(v.dtype)))
        if self.add_zero_attn:
            extra.append((k.new_zeros(1, 1, self.embed_dim), v.new_zeros(1, 1, self.embed_dim)))
        for more_k, more_v in extra:
            k = torch.cat([k, more_k.expand(len(k), -1, -1)], dim=1)
            v = torch.cat([v, more_v.expand(len(v), -1, -1)], dim=1)
        return k, v

    def _mask(self, q: Tensor, keys: int, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores: (N or 1, num_heads or 1, L or 1, keys)."""
        batch, heads, queries, _ = q.shape
        total = None
        if attn_mask is not None:
            total = _additive("attn_mask", attn_mask, q.dtype)
            if total.shape not in ((queries, keys), (batch * heads, queries, keys)):
                raise ValueError(
                    f"attn_mask has shape {tuple(total.shape)}; "
                    f"expected {(queries, keys)} or {(batch * heads, queries, keys)}"
                )
            total = total.reshape(-1, heads if total.dim() == 3 else 1, queries, keys)
        if padding is not None:
            if padding.shape != (batch, keys):
                raise ValueError(f"key_padding_mask has shape {tuple(padding.shape)}; expected {(batch, keys)}")
            more = _additive("key_padding_mask", padding, q.dtype).reshape(batch, 1, 1, keys)
            total = more if total is None else total + more
        return total

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def projection_shapes(embed_dim: int, kdim: int, vdim: int, packed: bool) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each projection by its name."""
    if packed:
        return {"in_proj": (3 * embed_dim, embed_dim), "out_proj": (embed_dim, embed_dim)}
    return {
        "q_proj": (embed_dim, embed_dim),
        "k_proj": (embed_dim, kdim),
        "v_proj": (embed_dim, vdim),
        "out_proj": (embed_dim, embed_dim),
    }


def _additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise TypeError(f"{name} has dtype {mask.dtype}; expected bool or floating point")
    return mask.to(dtype)
