"""Label smoothing in its two definitions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

DEFINITIONS = ("all", "others")


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.1, over: str = "all", **options: Any
) -> Tensor:
    """Cross-entropy against softened labels.

    "all" is torch's definition: eps/C on each of the C classes, the target's included, and 1 - eps more on the target.
    "others" is the published ToST's (arXiv 2206.12755): 1 - eps on the target, eps / (C - 1) on each other class.
    This is torch's at eps C / (C - 1), by which it is computed.

    Args:
        logits, targets: as of ``torch.nn.functional.cross_entropy``; C is ``logits.shape[1]``, or that of one
            sample's logits.
        smoothing: eps, in [0, 1]; for "others" at most (C - 1) / C, where all classes are alike.
        over: "all" or "others".
        **options: further arguments of ``torch.nn.functional.cross_entropy``, such as ``reduction``.

    Raises:
        ValueError: an unknown definition, or an eps out of its range.
    """
    classes = logits.shape[1 if logits.dim() > 1 else 0]
    check_smoothing(smoothing, over, classes)
    if over == "others" and smoothing > 0:
        smoothing = smoothing * classes / (classes - 1)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, **options)


def check_smoothing(smoothing: float, over: str, classes: int) -> None:
    """Raises ValueError for what `smoothed_cross_entropy` does not take with so many classes."""
    if over not in DEFINITIONS:
        raise ValueError(f"over is {over!r}; expected one of {', '.join(DEFINITIONS)}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing!r}; expected a number in [0, 1]")
    if over == "others" and smoothing > 0 and smoothing * classes > classes - 1:
        raise ValueError(
            f"smoothing is {smoothing!r} over the others of {classes} classes; expected at most "
            f"{(classes - 1) / classes:g}, where the target is as likely as they are"
        )
