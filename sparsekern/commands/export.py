"""`sparsekern export`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from sparsekern.atomic import replace_file
from sparsekern.export import export_program, to_csr, to_dense, write_onnx, write_program
from sparsekern.nn import SparseConv2d
from sparsekern.training.load import load_trained
from sparsekern.training.progress import tell
from sparsekern.training.report import show_bytes

FormatName = Literal["dense", "csr", "onnx", "pt2"]
SUFFIXES: dict[FormatName, str] = {"dense": ".safetensors", "csr": ".pt", "onnx": ".onnx", "pt2": ".pt2"}


@dataclass(frozen=True)
class Arguments:
    """Write the network of a run's last checkpoint to a file that is used without sparsekern.

    dense: a state_dict (safetensors) with dense weights, for the dense network. csr: a state_dict (torch.save) whose
    linear weights are torch.sparse_csr tensors, to be loaded with assign=True; torch has dense convolutions only.
    onnx: an ONNX file, dense, of a network with convolutions in float32. pt2: a torch.export program, dense, or of
    sparsekern's operators with --sparse.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    format: FormatName = "dense"
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write; there must be none yet. By default model.safetensors, .pt, .onnx or .pt2 in the run's folder."""
    sparse: bool = False
    """pt2: keep the sparse operators and weights; to load it, import sparsekern first."""


def export(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit code: 0, or 1 for what cannot be done."""
    options = tyro.cli(Arguments, prog="sparsekern export", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    try:
        path = write(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"sparsekern export: {error}", file=sys.stderr)
        return 1
    tell(Console(), f"{path}: {show_bytes(path.stat().st_size)}")
    return 0


def write(options: Arguments) -> Path:
    """The file written. Raises ValueError, ImportError or OSError before anything is."""
    if options.sparse and options.format != "pt2":
        raise ValueError(f"--sparse goes with --format pt2, not {options.format}")
    path = options.output or options.run / f"model{SUFFIXES[options.format]}"
    if path.exists():
        raise FileExistsError(f"{path} exists: --output names another file")
    model, image = load_trained(options.run, plain=True)
    model.cpu()
    if options.format == "onnx" and any(isinstance(each, (nn.Conv2d, SparseConv2d)) for each in model.modules()):
        model.float()  # ONNX runtimes have no convolution in float64
    example = torch.zeros(2, *image, dtype=next(model.parameters()).dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        if options.format == "dense":
            state = {name: value.contiguous() for name, value in to_dense(model).state_dict().items()}
            replace_file(path, lambda aside: save_file(state, aside, {"format": "pt"}))
        elif options.format == "csr":
            csr = to_csr(model).state_dict()
            replace_file(path, lambda aside: torch.save(csr, aside))
        elif options.format == "onnx":
            write_onnx(path, model, example)
        else:
            write_program(path, export_program(model, example, sparse=options.sparse))
    return path
