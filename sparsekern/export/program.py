"""A trained network as a torch.export program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sparsekern.atomic import replace_file
from sparsekern.backends._reference_attention import log_sums
from sparsekern.export.plain import to_dense


def export_program(model: nn.Module, example: Tensor | tuple[Any, ...], *, sparse: bool = False) -> ExportedProgram:
    """A torch.export program of `model` in eval mode, for batches of any size.

    Args:
        model: any network that torch.export can trace; it is not changed.
        example: what it is called with, of the shapes and dtypes to come; each tensor's first dimension is the batch.
        sparse: False gives a program of torch's own operators with DENSE weights, which runs without sparsekern. True
            keeps the sparse operators and weights: the program has their size, and needs `import sparsekern` to load.

    Raises:
        ValueError: no tensor in `example`, or tensors of different batches.
        torch.export's own errors: a network that cannot be traced.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    sizes = {len(value) for value in inputs if isinstance(value, Tensor) and value.dim()}
    if len(sizes) != 1:
        raise ValueError(f"example has batches of {sorted(sizes)}; expected tensors of one batch, at least one of them")
    if sizes == {1}:  # torch.export takes a size of 1 for one that stays
        inputs = tuple(
            torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value for value in inputs
        )
    shapes = tuple({0: Dim.DYNAMIC} if isinstance(value, Tensor) and value.dim() else None for value in inputs)
    # The modes of a model's parts may differ, and are put back.
    modes = {module: module.training for module in model.modules()}
    traced = model.eval() if sparse else to_dense(model).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(traced, inputs, dynamic_shapes=shapes)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return program if sparse else program.run_decompositions(_plain_operators())


def write_program(path: Path, program: ExportedProgram) -> None:
    """Writes a .pt2 file, whole or not at all; `torch.export.load` reads it."""

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            torch.export.save(program, file)

    replace_file(path, write)


def _plain_operators() -> dict[Any, Any]:
    """The library's dense operators in terms of torch's."""
    ops = torch.ops.sparsekern
    return {
        ops.attention.default: _attention,
        ops.gelu.default: _gelu,
        ops.batch_norm_inference.default: _batch_norm_inference,
    }


def _attention(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)
    # In eval mode nobody reads the sums: tracing leaves them out.
    return mixed.transpose(1, 2).flatten(2), log_sums(qkv, heads)


def _gelu(x: Tensor, tanh: bool) -> Tensor:
    return F.gelu(x, approximate="tanh" if tanh else "none")


def _batch_norm_inference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
) -> Tensor:
    y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
