"""Run by test_triton.py in a process of its own: every launch compiled for GPUs that need not be there.

The launches are the library's own, up to the driver: with the types, alignments and options that a GPU would be given.
"""

import itertools
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from sparsekern import Pattern
from sparsekern.backends import triton as backend
from sparsekern.backends.triton.sddmm import sddmm_kernel
from sparsekern.backends.triton.spmm import spmm_kernel

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
CAPABILITIES = (80, 90)
# (activations, values): the pairs that the operators let pass. Tokens at once and the values' type do not meet in the
# kernels, so each tile is compiled for one pair of each width.
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
CASES = [
    *itertools.product([(FLOAT, FLOAT), (HALF, HALF), (HALF, FLOAT), (BFLOAT, BFLOAT), (BFLOAT, FLOAT)], [69]),
    *itertools.product([(FLOAT, FLOAT), (BFLOAT, BFLOAT)], [16, 32]),
]
# Of a multiprocessor's 65,536 registers and the 32 programs that it holds, at least 28 programs of one warp fit in.
# Shared memory is left to the L1 cache, but for what sums across threads need.
REGISTERS = 72
SHARED_BYTES = 256
# A program asks for 2 KiB of activations at once: in four instructions of 16 bytes a thread.
WIDE_LOADS = 4


@pytest.fixture(params=CAPABILITIES)
def launched(request, monkeypatch):
    """The kernels compiled by what is launched, for one GPU: (name, CompiledKernel)."""
    target = GPUTarget("cuda", request.param, 32)
    driver = SimpleNamespace(
        get_current_device=lambda: request.param,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
    triton.runtime.driver.set_active(driver)
    compiled = []
    for kernel in (spmm_kernel, sddmm_kernel):

        def run(*args, kernel=kernel, launch=kernel.run, **options):
            compiled.append((kernel.__name__, launch(*args, **{**options, "warmup": True})))

        monkeypatch.setattr(kernel, "run", run)
    return compiled


def disassembled(kernel, folder):
    """(registers, stack bytes, SASS operations) of a compiled kernel, as NVIDIA's own tools read them."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    command = [TOOLS / "cuobjdump", "-sass", "--dump-resource-usage", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", text, re.MULTILINE)
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1]), operations


def named(value):
    return "-".join(str(dtype)[6:] for dtype in value) if isinstance(value, tuple) else None


# Pointers are int64 from 2**31 edges on; their type meets no other in the kernels either.
@pytest.mark.parametrize(
    ("dtypes", "tokens", "wide_pointers"), [*((*case, False) for case in CASES), (*CASES[0], True)], ids=named
)
def test_compiles_within_its_budget(launched, dtypes, tokens, wide_pointers, tmp_path):
    dtype, w_dtype = dtypes
    ccol, row, crow, col, perm = Pattern.random((64, 48), 300).tensors()
    if wide_pointers:
        ccol, crow, perm = ccol.long(), crow.long(), perm.long()
    x, grad = torch.zeros(tokens, 48, dtype=dtype), torch.zeros(tokens, 64, dtype=dtype)
    w, bias = torch.zeros(300, dtype=w_dtype), torch.zeros(64, dtype=w_dtype)
    backend.linear(x, w, bias, ccol, row, crow, col, perm)
    backend.linear_weight_grad(grad, x, ccol, row, w_dtype)
    assert [name for name, _ in launched] == ["spmm_kernel", "sddmm_kernel"]
    for name, kernel in launched:
        registers, stack, operations = disassembled(kernel, tmp_path)
        assert len(operations) > 100, name
        assert not [operation for operation in operations if operation.startswith(("LDL", "STL"))], name
        assert stack == 0, name
        assert registers <= REGISTERS, name
        assert kernel.metadata.shared <= SHARED_BYTES, name
        # Copies into shared memory would pass the L1 cache by.
        assert not [operation for operation in operations if operation.startswith("LDGSTS")], name
        wide = [operation for operation in operations if operation.startswith("LDG.E.128")]
        assert len(wide) >= WIDE_LOADS, (name, operations)


def test_compiles_without_bias(launched, tmp_path):
    ccol, row, *_ = Pattern.random((64, 48), 300).tensors()
    backend.linear_input_grad(torch.zeros(80, 64), torch.zeros(300), ccol, row)
    ((_, kernel),) = launched
    registers, stack, operations = disassembled(kernel, tmp_path)
    assert registers <= REGISTERS
    assert stack == 0
    assert not [operation for operation in operations if operation.startswith(("LDL", "STL"))]
