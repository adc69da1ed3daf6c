"""Dense linear layers under other names: an attention's projections, and the transformers library's Conv1D."""

from __future__ import annotations

from torch import Tensor, nn


def dense_projections(module: nn.MultiheadAttention, packed: bool) -> dict[str, nn.Linear]:
    """A dense attention's projections as linear layers on the very same memory, by the names they have when sparse."""
    bias = module.in_proj_bias
    weights: dict[str, Tensor]
    biases: list[Tensor | None]
    if packed:
        weights, biases = {"in_proj": module.in_proj_weight}, [bias]
    else:
        weights = {name: getattr(module, f"{name}_weight") for name in ("q_proj", "k_proj", "v_proj")}
        if module._qkv_same_embed_dim:
            weights = dict(zip(weights, module.in_proj_weight.chunk(3), strict=True))
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
    weights["out_proj"] = module.out_proj.weight
    biases.append(module.out_proj.bias)
    return {name: linear_around(weight, bias) for (name, weight), bias in zip(weights.items(), biases, strict=True)}


def linear_around(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An nn.Linear on the very memory of `weight` (out, in) and `bias` (out,)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = _parameter(weight)
    if bias is not None:
        linear.bias = _parameter(bias)
    return linear


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), tensor.requires_grad)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the transformers library's linear layer with weight (in, out); told by name, without the import."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
