"""The CUDA kernels: run on the CPU, over csrc/cuda/emulation and under AddressSanitizer, compiled for GPUs that need
not be there, and run on one that is.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import compiled_cuda
import emulated_cuda
import pytest
import torch
from machine_code import WHERE, find_cuobjdump, find_nvcc, local_memory
from own_process import run

TESTS = Path(__file__).parent

MODULES = ("running_gpu", "running_cuda", "running_cuda_tiles")
BACKEND = {"SPARSEKERN_TESTED_BACKEND": "cuda"}

sanitized = pytest.mark.skipif(emulated_cuda.preload() is None, reason="the C++ compiler has no AddressSanitizer")


@sanitized
def test_kernels_emulated_under_address_sanitizer(tmp_path):
    """All of them: each instance of a kernel's template has run."""
    module, started = emulated_cuda.build(tmp_path), tmp_path / "started.json"
    run(
        MODULES,
        {
            **BACKEND,
            "SPARSEKERN_EMULATED_CUDA": str(module),
            "SPARSEKERN_STARTED_KERNELS": str(started),
            "LD_PRELOAD": emulated_cuda.preload(),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "OMP_NUM_THREADS": "1",
        },
    )
    instances, started = emulated_cuda.kernels(module), set(json.loads(started.read_text()))
    assert {name.split("<")[0] for name in instances.values()} == set(BLOCKS)
    assert [name for place, name in instances.items() if place not in started] == []


@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("sparsekern._cuda") is None,
    reason="there is no GPU, or no CUDA kernels in this build: they are only emulated here",
)
def test_kernels_on_the_gpu():
    run(MODULES, {**BACKEND, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


# The emulation: what it is there to catch, it catches.


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return emulated_cuda.build_program(TESTS / "emulation_faults.cpp", tmp_path_factory.mktemp("faults"))


def faulty(program, name, seed=0):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program, name, str(seed)], env=environment, capture_output=True, text=True)


FAULTS = {
    "past-shared": "AddressSanitizer: heap-buffer-overflow",
    "past-global": "AddressSanitizer: heap-buffer-overflow",
    "read-past-global": "AddressSanitizer: heap-buffer-overflow",
    "copy-past-global": "AddressSanitizer: heap-buffer-overflow",
    "copy-past-shared": "error: copy_async_16: byte 256 of 256 bytes of shared memory, wanted 16, aligned to 16",
    "matrix-past-shared": "error: load_matrices_transposed: byte 256 of 256 bytes of shared memory, wanted 16, aligned",
    "address-past-shared": "error: shared_address: byte 257 of 256 bytes of shared memory, wanted 0, aligned to 1",
    "divergent-barrier": "error: threads of block (0, 0, 0) wait for ever: 0:barrier",
    "lanes-apart": "error: lanes of one warp are in ballot and in shuffle_xor",
    "lane-missing": "wait for ever: 0:shuffle 1:shuffle 2:shuffle 3:shuffle 4:shuffle 5:ended 6:shuffle",
    "misaligned-matrix": "error: load_matrices: byte 8 of 256 bytes of shared memory, wanted 16, aligned to 16",
    "misaligned-copy": "error: copy_async_16: byte 8 of 256 bytes of shared memory, wanted 16, aligned to 16",
    "misaligned-source": "error: copy_async_16 reads misaligned",
    "misaligned-read": "error: a misaligned read of global memory",
    "misaligned-write": "misaligned address",
    "equal-zeros": "error: equal_halves of a zero or a NaN",
    "equal-nans": "error: equal_halves of a zero or a NaN",
    "too-much-shared": "error: too-much-shared: no GPU starts 64 threads with 1048576 bytes of shared memory",
    "too-many-threads": "error: too-many-threads: no GPU starts 1056 threads",
    "half-a-warp": "error: half-a-warp: no GPU starts 48 threads",
    "too-wide": "error: too-wide: no GPU starts 64 threads with 0 bytes of shared memory, 65536 x 1 blocks in y and z",
    "too-deep": "error: too-deep: no GPU starts 64 threads with 0 bytes of shared memory, 1 x 65536 blocks in y and z",
}


@sanitized
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(faults, name):
    process = faulty(faults, name)
    assert process.returncode != 0
    assert FAULTS[name] in process.stdout + process.stderr
    right = faulty(faults, f"{name}-right")
    assert right.returncode == 0, right.stdout + right.stderr
    assert right.stdout.split() == ["1"] * 64


@sanitized
@pytest.mark.parametrize("name", ["no-wait", "no-commit", "early-wait", "unwritten-shared", "other-block"])
def test_what_nobody_has_written_is_nan(faults, name):
    wrong = faulty(faults, name).stdout.split()
    assert len(wrong) == 64
    assert all("nan" in value for value in wrong)
    assert faulty(faults, f"{name}-right").stdout.split() == ["2"] * 64


@sanitized
def test_bank_conflicts_are_counted(faults):
    assert faulty(faults, "bank-conflicts").stdout.split() == ["2"] * 64
    assert faulty(faults, "bank-conflicts-right").stdout.split() == ["1"] * 64


@sanitized
def test_races_show_in_another_order_of_threads(faults):
    results = {faulty(faults, "race", seed).stdout for seed in range(3)}
    assert len(results) == 3
    assert {faulty(faults, "race-right", seed).stdout for seed in range(3)} == {"64 " * 64 + "\n"}


# What nvcc makes of the kernels.

needs_nvcc = pytest.mark.skipif(
    find_nvcc() is None, reason="there is no nvcc, so the CUDA kernels are not compiled for GPUs here"
)

# Threads of a block, and blocks that a multiprocessor is to hold of its 65,536 registers.
BLOCKS = {
    "transpose_kernel": (256, 4),
    "transpose_halves_kernel": (256, 4),
    "count_kernel": (256, 4),
    "fill_kernel": (256, 3),
    "order_kernel": (128, 8),
    "pack_kernel": (256, 8),
    "spmm_kernel": (512, 1),
    "sddmm_kernel": (512, 1),
    "add_kernel": (256, 8),
    "pack_edges_kernel": (256, 4),
    "gather_kernel": (384, 2),
    "gather_half_kernel": (384, 2),
    "inner_kernel": (384, 1),
    "inner_half_kernel": (384, 1),
    "add_slices_kernel": (256, 4),
}
# Instructions for a group of 16 slots, by the tokens of a tile.
INSTRUCTIONS = {16: 26, 32: 30, 64: 40}


needs_disassembler = pytest.mark.skipif(
    find_cuobjdump() is None, reason=f"there is no cuobjdump to read machine code with: {WHERE}"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The module's path, and its kernels for each GPU."""
    module, report = compiled_cuda.build(tmp_path_factory.mktemp("compiled"))
    return module, compiled_cuda.kernels(module, report)


@needs_nvcc
def test_kernels_compile_within_their_budgets(compiled):
    _, kernels = compiled
    assert {kernel.arch for kernel in kernels} == set(compiled_cuda.ARCHS)
    assert {kernel.name.split("<")[0] for kernel in kernels} == set(BLOCKS)
    for kernel in kernels:
        threads, blocks = BLOCKS[kernel.name.split("<")[0]]
        assert kernel.spilled_bytes == kernel.stack_bytes == kernel.shared_bytes == 0, kernel
        # Registers are given to a warp 256 at a time.
        assert -(-kernel.registers // 8) * 8 * threads * blocks <= 65536, kernel


@needs_nvcc
@needs_disassembler
def test_machine_code_has_no_local_memory(compiled):
    _, kernels = compiled
    for kernel in kernels:
        assert kernel.operations is not None, kernel.name
        assert len(kernel.operations) > 20, kernel
        assert not local_memory(kernel.operations), kernel


@needs_nvcc
@needs_disassembler
def test_a_group_of_slots_takes_few_instructions(compiled):
    _, kernels = compiled
    products = [kernel for kernel in kernels if kernel.name.startswith("spmm_kernel")]
    assert len(products) == len(compiled_cuda.ARCHS) * 2 * 4
    for kernel in products:
        tokens = int(re.search(r", (\d+), (\d+)>", kernel.name)[1])
        assert kernel.group_loops, kernel.name
        for instructions, multiplications in kernel.group_loops:
            assert instructions / (multiplications / (tokens / 16)) <= INSTRUCTIONS[tokens], kernel.name


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_the_module_imports_and_says_what_is_missing(compiled):
    module, _ = compiled
    code = (
        f"import importlib.util as u; s = u.spec_from_file_location('_cuda', {str(module)!r}); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print('imported'); "
        "m.transpose(m.Queue(0, 0), 0, 1, 1, 1, 0, 16, 4)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "imported\n"
    assert re.search(r"RuntimeError: CUDA, transpose: .*driver", process.stderr), process.stderr
