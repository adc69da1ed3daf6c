"""What the modules that test_cuda.py and test_triton.py run have in common: the GPU backend under test, its operands.

On CPU tensors, over csrc/cuda/emulation or in Triton's interpreter, or, where neither is named, on a GPU, where
SPARSEKERN_TESTED_BACKEND says which backend.
"""

import atexit
import json
import os
from importlib import import_module
from pathlib import Path

import torch

import sparsekern
from sparsekern import Pattern
from sparsekern.backends import reference
from sparsekern.backends.cuda.extension import is_emulated, kernels

NAME = os.environ.get("SPARSEKERN_TESTED_BACKEND", "cuda" if is_emulated() else "triton")
DEVICE = "cpu" if is_emulated() or os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHARED_BYTES = 227 * 1024  # of a block of an H200
# Triton's interpreter cuts a float32 off to a bfloat16, where a GPU rounds it.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}
HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, *HALVES]

backend = import_module(f"sparsekern.backends.{NAME}")
if os.environ.get("TRITON_INTERPRET") == "1":
    import_module("triton_bounds").watch()

if STARTED := os.environ.get("SPARSEKERN_STARTED_KERNELS"):
    atexit.register(lambda: Path(STARTED).write_text(json.dumps(sorted(kernels().started_kernels()))))


def emulate(order_seed=0, shared_bytes=SHARED_BYTES, processors=2):
    """Another order of threads and another GPU, where the CUDA kernels are emulated."""
    if is_emulated():
        kernels().emulate(order_seed, shared_bytes, processors)


def conflicts(work):
    """Passes over the banks of shared memory that ldmatrix takes for a matrix in this work; 1 where nobody counts."""
    if not is_emulated():
        work()
        return 1
    kernels().matrix_reads()
    work()
    matrices, passes = kernels().matrix_reads()
    assert matrices > 0
    return passes / matrices


class Operands:
    """A linear layer's, with edges where the mask is true."""

    def __init__(self, tokens, mask, dtype=torch.float32, w_dtype=None, wide_pointers=False):
        rows, columns = mask.shape
        ccol, row, crow, col, perm = Pattern.from_mask(mask).to(DEVICE).tensors()
        if wide_pointers:
            ccol, crow, perm = ccol.long(), crow.long(), perm.long()
        self.topology = ccol, row, crow, col, perm
        self.x = torch.randn(tokens, columns, device=DEVICE).to(dtype)
        self.grad = torch.randn(tokens, rows, device=DEVICE).to(dtype)
        self.w = torch.randn(int(mask.sum()), device=DEVICE).to(w_dtype or dtype)
        self.bias = torch.randn(rows, device=DEVICE).to(w_dtype or dtype)

    def results(self, products):
        x, grad, w, (ccol, row, *by_row) = self.x, self.grad, self.w, self.topology
        dx, dw, dbias = products.linear_backward(grad, x, w, ccol, row, w.dtype)
        return {"y": products.linear(x, w, self.bias, ccol, row, *by_row), "dx": dx, "dw": dw, "dbias": dbias}


def random_mask(rows, columns, density):
    """With an empty row and an empty column, where there are some and the density is not 1."""
    mask = torch.rand(rows, columns, device=DEVICE) < density
    if rows > 2 and density < 1:
        mask[rows // 2] = False
    if columns > 2 and density < 1:
        mask[:, columns // 2] = False
    return mask


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.numel() == 0 or actual.stride() == expected.stride()
    scale = max(1.0, expected.double().abs().max().item()) if expected.numel() else 1.0
    assert ((actual.double() - expected.double()).abs() <= tolerance * scale).all()


def assert_equal_their_twins(operands, **options):
    """That the backend's results are the reference's; returns them."""
    expected = operands.results(reference, **options)
    results = operands.results(backend, **options)
    assert results.keys() == expected.keys()
    for name, value in results.items():
        assert_close(value, expected[name], TOLERANCE[operands.x.dtype])
    return results


def step(layer, name, images, other):
    """Everything that a training step and an update compute with a layer's edges, on the backend of that name."""
    x = images.clone().requires_grad_()
    with sparsekern.backend(name):
        y = layer(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        ((y.square().sum()) + dx.square().sum()).backward()
        grad = torch.autograd.grad(y.sum(), y)[0]
        at_others = layer.weight_grad_at(grad, x.detach(), other)
        with torch.inference_mode():
            again = layer(images)
    values = [y, dx, x.grad, layer.weight.grad, layer.bias.grad, at_others, again]
    layer.zero_grad()
    return [value.detach().clone() for value in values]
