"""Compiles csrc/cuda with nvcc for two GPUs that need not be there, and reads what the compiler says of each kernel."""

import os
import re
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pybind11
from machine_code import disassembled, find_cuobjdump, find_nvcc, operation

ROOT = Path(__file__).parent.parent
ARCHS = ("80", "90a")
OPTIONS = ["-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


@dataclass(frozen=True)
class Kernel:
    """A kernel for one GPU, by what ptxas and, where that can be read, the machine code say of it."""

    name: str
    arch: str
    registers: int
    stack_bytes: int
    spilled_bytes: int
    shared_bytes: int
    operations: tuple[str, ...] | None
    group_loops: tuple[tuple[int, int], ...] | None  # instructions and HMMAs of each innermost loop with HMMAs


def build(folder):
    """(the module's path, what ptxas reported) of csrc/cuda, compiled into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc, cuda = find_nvcc(), ROOT / "csrc/cuda"
    includes = [f"-I{path}" for path in (ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]

    def compile_one(source):
        target = folder / f"{source.name}.o"
        # The bindings' code is no kernel's: not optimised, it compiles in a third of the time.
        optimised = ["-O3", "-Xptxas", "-v"] if source.suffix == ".cu" else ["-O0"]
        command = [nvcc, *OPTIONS, *optimised, *targets, *includes, "-c", source, "-o", target]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return target, process.stderr

    sources = sorted([*cuda.glob("*.cu"), *cuda.glob("*.cpp")], key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sources))
    module = folder / ("_cuda" + sysconfig.get_config_var("EXT_SUFFIX"))
    objects = [target for target, _ in compiled]
    subprocess.run([nvcc, "-shared", "-cudart", "static", *objects, "-o", module], check=True)
    return module, "".join(report for _, report in compiled)


def group_loops(instructions):
    """(instructions, HMMAs) of each loop without an inner one that has HMMAs."""
    index = {address: number for number, (address, _) in enumerate(instructions)}
    loops = []
    for number, (address, instruction) in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", instruction)
        if target and int(target[1], 16) < address and int(target[1], 16) in index:
            loops.append((index[int(target[1], 16)], number + 1))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    counted = ((end - start, instructions[start:end]) for start, end in innermost)
    counts = ((length, sum(operation(text).startswith("HMMA") for _, text in body)) for length, body in counted)
    return tuple(count for count in counts if count[1])


def kernels(module, report):
    """The kernels that a module's compilation reported."""
    code = disassembled(module) if find_cuobjdump() else {}
    found = []
    pattern = (
        r"Compiling entry function '(\S+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    for mangled, arch, stack, stores, loads, registers, rest in re.findall(pattern, report, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        instructions = code.get((mangled, arch)) or code.get((mangled, arch.rstrip("a")))
        found.append(
            Kernel(
                name=mangled,
                arch=arch,
                registers=int(registers),
                stack_bytes=int(stack),
                spilled_bytes=int(stores) + int(loads),
                shared_bytes=int(shared[1]) if shared else 0,
                operations=tuple(operation(text) for _, text in instructions) if instructions else None,
                group_loops=group_loops(instructions) if instructions else None,
            )
        )
    names = subprocess.run(["c++filt"], input="\n".join(k.name for k in found), capture_output=True, text=True).stdout
    short = (re.sub(r"sparsekern::cuda::|\(anonymous namespace\)::|^void ", "", name) for name in names.splitlines())
    # Up to the arguments' parenthesis.
    return [Kernel(**{**vars(kernel), "name": name.split("(")[0]}) for kernel, name in zip(found, short, strict=True)]
