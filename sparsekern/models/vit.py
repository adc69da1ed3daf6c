"""A small vision transformer (Dosovitskiy et al. 2021), pre-norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsekern.ops.attention import attention
from sparsekern.ops.gelu import gelu

POOLINGS = ("mean", "cls")


class Attention(nn.Module):
    """Multi-head self-attention from plain linear layers. (B, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(attention(self.qkv(x), self.heads))


class Block(nn.Module):
    """Attention and a GELU network of `hidden` units, each behind its own layer norm and residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(gelu(self.expand(self.norm2(x))))


class ViT(nn.Module):
    """Patches of `patch` x `patch` pixels, `depth` blocks, a pooled linear head.

    `pooling` is "mean" over the patches or "cls" (a learned token). Position embeddings are learned.
    Input (B, channels, size, size), output (B, classes).
    """

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        if size % patch:
            raise ValueError(f"patch must divide the image size {size}, got patch {patch}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {list(POOLINGS)}, got {pooling!r}")
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "cls" else None
        tokens = (size // patch) ** 2 + (pooling == "cls")
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.cls is None:
            tokens = tokens.contiguous()  # or the strides would go from sum to sum, and each norm would copy
        else:
            tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.blocks(tokens + self.position)
        return self.head(self.norm(tokens).mean(dim=1) if self.cls is None else self.norm(tokens[:, 0]))
