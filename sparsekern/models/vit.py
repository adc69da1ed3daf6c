"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929), pre-norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsekern.ops.attention import attention
from sparsekern.ops.gelu import gelu

POOLINGS = ("mean", "cls")


def check_patch(size: int, patch: int) -> None:
    if patch < 1 or size % patch:
        raise ValueError(f"patch must divide the image size {size}, got patch {patch}")


class Attention(nn.Module):
    """Multi-head self-attention from plain linear layers. (B, tokens, width) -> the same.

    Each head has `size` features, by default width / heads.
    """

    def __init__(self, width: int, heads: int, size: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        inner = width if size is None else heads * size
        self.qkv = nn.Linear(width, 3 * inner, bias=bias)
        self.projection = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(attention(self.qkv(x), self.heads))


class Block(nn.Module):
    """Attention and a GELU network of `hidden` units, each behind its own layer norm and residual."""

    def __init__(self, width: int, attention: Attention, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(gelu(self.expand(self.norm2(x))))


class ViT(nn.Module):
    """Patches of `patch` x `patch` pixels, `depth` blocks of `hidden` units (4 * width), a pooled linear head.

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
        hidden: int | None = None,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        check_patch(size, patch)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {list(POOLINGS)}, got {pooling!r}")
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "cls" else None
        tokens = (size // patch) ** 2 + (pooling == "cls")
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        self.reset_parameters()
        hidden = 4 * width if hidden is None else hidden
        self.blocks = nn.Sequential(*(Block(width, Attention(width, heads), hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def reset_parameters(self) -> None:
        """Draws the position embeddings anew and clears the class token: what no submodule holds."""
        nn.init.trunc_normal_(self.position, std=0.02)
        if self.cls is not None:
            nn.init.zeros_(self.cls)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.cls is None:
            tokens = tokens.contiguous()  # or the strides would go from sum to sum, and each norm would copy
        else:
            tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.blocks(tokens + self.position)
        return self.head(self.norm(tokens).mean(dim=1) if self.cls is None else self.norm(tokens[:, 0]))


def vit_ti(channels: int, size: int, classes: int, *, patch: int = 16, pooling: str = "cls") -> ViT:
    """ViT-Ti/16 (Touvron et al. 2021, arXiv 2012.12877): 12 blocks of width 192."""
    return ViT(channels, size, classes, width=192, depth=12, heads=3, patch=patch, pooling=pooling)


def vit_s(channels: int, size: int, classes: int, *, patch: int = 16, pooling: str = "cls") -> ViT:
    """ViT-S/16 (Touvron et al. 2021, arXiv 2012.12877): 12 blocks of width 384."""
    return ViT(channels, size, classes, width=384, depth=12, heads=6, patch=patch, pooling=pooling)


def vit_b(channels: int, size: int, classes: int, *, patch: int = 16, pooling: str = "cls") -> ViT:
    """ViT-B/16 (Dosovitskiy et al. 2021): 12 blocks of width 768."""
    return ViT(channels, size, classes, width=768, depth=12, heads=12, patch=patch, pooling=pooling)
