"""What devices and dtypes the kernels are written for."""

import torch

from sparsekern.backends.gpu import DTYPES, is_from_sm_80


def serves(product: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product ("linear", "conv2d") of such activations has a kernel here; the reference has all."""
    if product not in ("linear", "conv2d") or dtype not in DTYPES:
        return False
    return device.type != "cuda" or torch.version.hip is not None or is_from_sm_80(device)
