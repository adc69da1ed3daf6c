"""A trained network as an ONNX file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.atomic import replace_file
from sparsekern.export.program import export_program

# A protobuf message ends there, and an ONNX file is one.
_LARGEST_FILE = 2**31 - 1


def write_onnx(path: Path, model: nn.Module, example: Tensor | tuple[Any, ...]) -> None:
    """Writes `model` in eval mode as an ONNX file, whole or not at all; the batch may have any size.

    Its weights are DENSE: ONNX has sparse initializers, but runtimes unpack them when they load. Inputs and outputs are
    named "input_0", "output_0" and so on.

    Args:
        path: the file to write.
        model, example: as for :func:`~sparsekern.export.program.export_program`.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: what `export_program` raises, or a network too large for an ONNX file (2 GiB).
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise ImportError(f'{package} is not installed: pip install "torch==<yours>" onnx onnxscript')
    program = export_program(model, example)
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _LARGEST_FILE:
        raise ValueError(f"the dense weights have {size:,} bytes; an ONNX file holds {_LARGEST_FILE:,}")
    inputs = [f"input_{place}" for place in range(len(program.graph_signature.user_inputs))]
    outputs = [f"output_{place}" for place in range(len(program.graph_signature.user_outputs))]
    made = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
    assert made is not None
    replace_file(path, lambda aside: made.save(str(aside), external_data=False))
