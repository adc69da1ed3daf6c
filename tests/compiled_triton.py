"""Run by test_triton.py in a process of its own: every launch compiled for GPUs that need not be there.

The launches are the library's own, up to the driver: with the types, alignments and options that a GPU would be given.
"""

import itertools
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
import triton
from machine_code import disassembled, find_cuobjdump, local_memory, operation
from triton.backends.compiler import GPUTarget

from benchmarks.gpu import l2
from sparsekern import Pattern
from sparsekern.backends import triton as backend
from sparsekern.backends.triton import layout
from sparsekern.backends.triton.conv2d_gather import conv2d_kernel
from sparsekern.backends.triton.conv2d_sampled import conv2d_sampled_kernel
from sparsekern.backends.triton.sddmm import sddmm_kernel
from sparsekern.backends.triton.spmm import spmm_kernel
from sparsekern.backends.triton.transpose import transpose_kernel

# (activations, values): the pairs that the operators let pass. Tokens at once and the values' type do not meet in the
# kernels, so each tile is compiled for one pair of each width.
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
CASES = [
    *itertools.product([(FLOAT, FLOAT), (HALF, HALF), (HALF, FLOAT), (BFLOAT, BFLOAT), (BFLOAT, FLOAT)], [69]),
    *itertools.product([(FLOAT, FLOAT), (BFLOAT, BFLOAT)], [16, 32]),
]
# Of a multiprocessor's 65,536 registers, programs of one warp: at least 28 of those that may be 32, or 25.
REGISTERS = {"spmm_kernel": 72, "sddmm_kernel": 72, "conv2d_kernel": 80, "conv2d_sampled_kernel": 80}
# Shared memory is left to the L1 cache, but for what sums across threads need.
SHARED_BYTES = 512
# A program asks for 2 KiB of activations at once: in four instructions of 16 bytes a thread.
WIDE_LOADS = 4


def for_gpus(cases, fewer):
    """Each case for sm_90, and fewer of them, that have each kernel once and each width of activations, for sm_80."""
    return [(90, *case) for case in cases] + [(80, *case) for case in fewer]


@pytest.fixture
def launched(request, monkeypatch):
    """The kernels compiled by what is launched, for one GPU: (name, CompiledKernel)."""
    is_nvidia = isinstance(request.param, int)
    target = GPUTarget("cuda", request.param, 32) if is_nvidia else GPUTarget("hip", request.param, 64)
    driver = SimpleNamespace(
        get_current_device=lambda: request.param,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
    triton.runtime.driver.set_active(driver)
    compiled = []
    for kernel in (transpose_kernel, spmm_kernel, sddmm_kernel, conv2d_kernel, conv2d_sampled_kernel, l2.read_kernel):

        def run(*args, kernel=kernel, launch=kernel.run, **options):
            compiled.append((kernel.__name__, launch(*args, **{**options, "warmup": True})))

        monkeypatch.setattr(kernel, "run", run)
    return compiled


def products(launched):
    """The kernels but for the transposes around them."""
    return [(name, kernel) for name, kernel in launched if name != "transpose_kernel"]


def machine_code(kernel, folder):
    """(registers, stack bytes, SASS operations) of a compiled kernel, as NVIDIA's own tools read them."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    command = [find_cuobjdump(), "--dump-resource-usage", path]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((_, instructions),) = disassembled(path).items()
    operations = [operation(text) for _, text in instructions]
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1]), operations


def named(value):
    return "-".join(str(dtype)[6:] for dtype in value) if isinstance(value, tuple) else None


def check(name, kernel, folder, wide):
    """That a kernel is within its budget and, where it is to read 16 bytes at a time, does."""
    registers, stack, operations = machine_code(kernel, folder)
    assert len(operations) > 100, name
    assert not local_memory(operations), name
    assert stack == 0, name
    assert registers <= REGISTERS[name], name
    assert kernel.metadata.shared <= SHARED_BYTES, name
    # Copies into shared memory would pass the L1 cache by.
    assert not [operation for operation in operations if operation.startswith("LDGSTS")], name
    loads = [operation for operation in operations if operation.startswith("LDG.E.128")]
    assert len(loads) >= WIDE_LOADS or not wide, (name, operations)


# Pointers are int64 from 2**31 edges on; their type meets no other in the kernels either.
LINEAR_CASES = [*((*case, False) for case in CASES), (*CASES[0], True)]


@pytest.mark.parametrize(
    ("launched", "dtypes", "tokens", "wide_pointers"),
    for_gpus(LINEAR_CASES, [LINEAR_CASES[0], LINEAR_CASES[3], LINEAR_CASES[-2]]),
    indirect=["launched"],
    ids=named,
)
def test_compiles_within_its_budget(launched, dtypes, tokens, wide_pointers, tmp_path, monkeypatch):
    dtype, w_dtype = dtypes
    ccol, row, crow, col, perm = Pattern.random((64, 48), 300).tensors()
    if wide_pointers:
        ccol, crow, perm = ccol.long(), crow.long(), perm.long()
    x, grad = torch.zeros(tokens, 48, dtype=dtype), torch.zeros(tokens, 64, dtype=dtype)
    w, bias = torch.zeros(300, dtype=w_dtype), torch.zeros(64, dtype=w_dtype)
    monkeypatch.setattr(layout, "_PROGRAMS", 1)  # so many edges that they need not be spread
    backend.linear(x, w, bias, ccol, row, crow, col, perm)
    backend.linear_weight_grad(grad, x, ccol, row, w_dtype)
    assert [name for name, _ in products(launched)] == ["spmm_kernel", "sddmm_kernel"]
    for name, kernel in products(launched):
        check(name, kernel, tmp_path, wide=True)


@pytest.mark.parametrize(("launched", "rows"), for_gpus([(64,), (40000,)], [(64,)]), indirect=["launched"])
def test_compiles_without_bias(launched, rows, tmp_path):
    ccol, row, *_ = Pattern.random((rows, 48), 300).tensors()
    backend.linear_input_grad(torch.zeros(80, rows), torch.zeros(300), ccol, row)
    ((name, kernel),) = products(launched)
    assert kernel.src.signature["indices"] == ("*i16" if rows == 64 else "*i32")
    check(name, kernel, tmp_path, wide=True)


@pytest.mark.parametrize(("launched", "dtype"), for_gpus([(FLOAT,), (BFLOAT,)], [(BFLOAT,)]), indirect=["launched"])
def test_compiles_for_few_edges(launched, dtype, tmp_path):
    ccol, row, *_ = Pattern.random((64, 48), 300).tensors()
    backend.linear_weight_grad(torch.zeros(8000, 64, dtype=dtype), torch.zeros(8000, 48, dtype=dtype), ccol, row, dtype)
    ((name, kernel),) = products(launched)
    assert kernel.metadata.num_warps == layout.MOST_WARPS
    check(name, kernel, tmp_path, wide=True)


@pytest.mark.parametrize(
    ("launched", "dtype", "batch"),
    for_gpus([*itertools.product([FLOAT, BFLOAT], [64, 69])], [(FLOAT, 69), (BFLOAT, 69)]),
    indirect=["launched"],
)
def test_transposes_read_and_write_wide(launched, dtype, batch, tmp_path):
    layout.by_token(layout.by_feature(torch.zeros(batch, 3, 8, 8, dtype=dtype)), batch)
    assert [name for name, _ in launched] == ["transpose_kernel"] * 2
    for _, kernel in launched:
        registers, stack, operations = machine_code(kernel, tmp_path)
        assert registers <= 64
        assert stack == 0
        assert kernel.metadata.shared <= 64 * 65 * dtype.itemsize
        wide = 64 * 64 * dtype.itemsize // 16 // 128
        assert sum(operation.startswith("STG.E.128") for operation in operations) == wide
        assert sum(op.startswith("LDG.E.128") for op in operations) == wide


@pytest.mark.parametrize("launched", [80, 90], indirect=True)
def test_what_measures_the_cache_compiles(launched, tmp_path):
    """The second-level cache's ceiling: its loads pass the first level by."""
    l2.read(torch.zeros(8192), programs=4, reads=2)
    ((_, kernel),) = launched
    registers, stack, operations = machine_code(kernel, tmp_path)
    assert registers <= 64
    assert stack == 0
    assert not local_memory(operations)
    assert [operation for operation in operations if operation.startswith("LDG.E.128") and "STRONG.GPU" in operation]


# Images (N, C, H, W), kernel, stride, padding, and whether an edge reads 16 bytes at a time.
CONVOLUTIONS = {
    "by pixel": ((64, 16, 8, 8), 3, 1, 1, True),
    "by pixel, 16 images": ((16, 16, 14, 14), 3, 1, 1, True),
    "by pixel, stride": ((128, 16, 8, 8), 3, 2, 1, True),
    "by pixel, pointwise": ((64, 16, 7, 7), 1, 1, 0, True),
    "planes": ((2, 16, 56, 56), 3, 1, 1, False),
    "planes, stride": ((2, 16, 14, 14), 3, 2, 1, False),
    "planes, pointwise": ((2, 16, 8, 8), 1, 1, 0, True),
    "planes, pointwise, odd": ((2, 16, 15, 15), 1, 1, 0, False),
}


CONV_CASES = [
    *itertools.product([(BFLOAT, FLOAT)], CONVOLUTIONS),
    *itertools.product([(FLOAT, FLOAT)], ["by pixel", "planes", "planes, pointwise"]),
    ((HALF, HALF), "by pixel"),
]
CONV_FEWER = [
    *itertools.product([(BFLOAT, FLOAT)], ["by pixel", "planes", "planes, pointwise"]),
    ((FLOAT, FLOAT), "by pixel"),
]


@pytest.mark.parametrize(
    ("launched", "dtypes", "name"), for_gpus(CONV_CASES, CONV_FEWER), indirect=["launched"], ids=named
)
def test_convolutions_compile_within_their_budget(launched, dtypes, name, tmp_path):
    dtype, w_dtype = dtypes
    shape, kernel, stride, padding, wide = CONVOLUTIONS[name]
    topology = Pattern.random((24, 16 * kernel * kernel), 90).tensors()
    geometry = (kernel, kernel), (stride, stride), (padding, padding), (1, 1), 1
    x, w, bias = torch.zeros(shape, dtype=dtype), torch.zeros(90, dtype=w_dtype), torch.zeros(24, dtype=w_dtype)
    y = backend.conv2d(x, w, bias, *topology, *geometry)
    backend.conv2d_backward(y, x, w, *topology[:2], *geometry, None)
    assert [name for name, _ in products(launched)] == ["conv2d_kernel"] * 2 + ["conv2d_sampled_kernel"]
    for name, kernel in products(launched):
        check(name, kernel, tmp_path, wide)


@pytest.mark.parametrize("launched", ["gfx942"], indirect=True)
def test_compiles_for_amd(launched):
    """An MI300: nothing in the kernels is NVIDIA's alone, and nothing spills there."""
    topology = Pattern.random((24, 16 * 9), 90).tensors()
    geometry = (3, 3), (2, 2), (1, 1), (1, 1), 1
    x, w = torch.zeros(64, 16, 8, 8, dtype=BFLOAT), torch.zeros(90)
    y = backend.conv2d(x, w, None, *topology, *geometry)
    backend.conv2d_backward(y, x, w, *topology[:2], *geometry, None)
    tokens, grad = torch.zeros(69, 16 * 9, dtype=BFLOAT), torch.zeros(69, 24, dtype=BFLOAT)
    backend.linear(tokens, w, None, *topology)
    backend.linear_weight_grad(grad, tokens, *topology[:2], torch.float32)
    assert {name for name, _ in launched} == {
        "transpose_kernel",
        "spmm_kernel",
        "sddmm_kernel",
        "conv2d_kernel",
        "conv2d_sampled_kernel",
    }
    for name, kernel in launched:
        spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", kernel.asm["amdgcn"])
        assert spilled == ["0", "0"], name
