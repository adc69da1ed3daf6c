"""Reads machine code of NVIDIA's GPUs with NVIDIA's own disassembler, wherever there is one."""

import os
import re
import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

WHERE = "of the CUDA toolkit, of triton, or by pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"


def find_nvcc():
    """The path of nvcc, or None: where setup.py looks."""
    named = [os.environ["NVCC"]] if "NVCC" in os.environ else []
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [*named, shutil.which("nvcc"), *(str(Path(home, "bin/nvcc")) for home in [*homes, "/usr/local/cuda"])]
    return next((place for place in places if place and shutil.which(place)), None)


def find_cuobjdump():
    """The path of a cuobjdump with the nvdisasm that it calls, or None: on PATH, beside nvcc, triton's, or pip's."""
    folders = [Path(place).parent for place in (shutil.which("cuobjdump"), find_nvcc()) if place]
    triton = find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    folders += sorted(Path(sysconfig.get_path("platlib"), "nvidia").glob("cu*/bin"))
    for folder in folders:
        path = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
        if (folder / "cuobjdump").exists() and shutil.which("nvdisasm", path=path):
            return str(folder / "cuobjdump")
    return None


def disassembled(file):
    """{(mangled name, arch): its instructions with their addresses} of each kernel of a cubin or a module."""
    tool = find_cuobjdump()
    assert tool is not None
    command = [tool, "-sass", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels, arch = {}, None
    for line in text.splitlines():
        if found := re.search(r"(?:arch = |code for )sm_(\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s+Function : (\S+)", line):
            instructions = kernels[found[1], arch] = []
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?) ?;", line):
            instructions.append((int(found[1], 16), found[2]))
    return kernels


def operation(instruction):
    """The operation of an instruction, with its modifiers."""
    return re.sub(r"^@!?U?P\w+ +", "", instruction).split()[0]


def local_memory(operations):
    """Those that a kernel without registers spilled, and without arrays that it indexes, has none of."""
    return [name for name in operations if name.startswith(("LDL", "STL"))]
