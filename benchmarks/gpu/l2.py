"""A kernel that reads a buffer again and again, past the first-level cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def read_kernel(out, source, blocks, reads, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """All programs together read each block `reads` times; each goes on to others, so that none is its own."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, blocks * reads, programs):
        at = (block % blocks) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(source + at, cache_modifier=".cg")
    tl.store(out + program, tl.sum(total, axis=0))


def read(source: Tensor, programs: int, reads: int) -> Tensor:
    """The sum that each program found, (programs,): together `reads` times that of `source`'s whole blocks."""
    out = torch.empty(programs, device=source.device)
    read_kernel[(programs,)](out, source, source.numel() // BLOCK, reads, BLOCK=BLOCK, num_warps=4)
    return out
