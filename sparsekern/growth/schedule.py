"""What share of a layer's edges an update replaces."""

import math


def cosine_share(step: int, alpha: float, end: int) -> float:
    """``alpha / 2 * (1 + cos(pi * step / end))``, 0 from ``end`` on (GSE paper, arXiv 2401.06898, Alg. 1)."""
    if step >= end:
        return 0.0
    return alpha / 2 * (1 + math.cos(math.pi * step / end))
