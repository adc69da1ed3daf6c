"""SimpleViT: fixed positions, mean pooling, no class token (Beyer et al. 2022, arXiv 2205.01580)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsekern.models.vit import Attention, Block, check_patch

HEAD_SIZE = 64  # features of a head, whatever the width


def sincos_positions(side: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """(side * side, width) float32: sine and cosine of each patch's column and row at width / 4 frequencies.

    The frequencies fall geometrically from 1 to 1 / temperature (Beyer et al. 2022, section 3).

    Raises:
        ValueError: a width below 8 or no multiple of 4.
    """
    if width < 8 or width % 4:
        raise ValueError(f"width must be a multiple of 4, at least 8, for sin-cos positions, got {width}")
    frequencies = temperature ** -torch.linspace(0, 1, width // 4, device="cpu")
    at = torch.arange(side, dtype=torch.float32, device="cpu")
    row, column = torch.meshgrid(at, at, indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (column, row)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


class SimpleViT(nn.Module):
    """Normed patches of `patch` x `patch` pixels, fixed positions, `depth` blocks, the mean token, a linear head.

    The defaults are the GSE paper's (arXiv 2401.06898): heads of 64 features, whatever the width, in an attention
    without biases. Input (B, channels, size, size), output (B, classes).
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        *,
        width: int = 512,
        depth: int = 4,
        heads: int = 6,
        patch: int = 4,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        check_patch(size, patch)
        self.patch, self.side, self.width = patch, size // patch, width
        self.patch_norm = nn.LayerNorm(channels * patch * patch)
        self.embed = nn.Linear(channels * patch * patch, width)
        self.embed_norm = nn.LayerNorm(width)
        # They follow from the sizes: not in the state_dict.
        self.register_buffer("positions", torch.empty(self.side**2, width), persistent=False)
        self.reset_parameters()
        self.blocks = nn.Sequential(
            *(Block(width, Attention(width, heads, HEAD_SIZE, bias=False), hidden) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def reset_parameters(self) -> None:
        """Computes the positions anew: what no submodule holds."""
        self.positions.copy_(sincos_positions(self.side, self.width))

    def patches(self, images: Tensor) -> Tensor:
        """(B, side * side, patch * patch * channels), the channels of a pixel together."""
        batch, channels = images.shape[:2]
        cut = images.view(batch, channels, self.side, self.patch, self.side, self.patch)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, self.side**2, -1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed_norm(self.embed(self.patch_norm(self.patches(images.contiguous()))))
        tokens = self.blocks(tokens + self.positions)
        return self.head(self.norm(tokens.mean(dim=1)))
