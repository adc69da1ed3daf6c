"""Compiles csrc/cuda as C++ over its emulation: `python tests/emulated_cuda.py FOLDER` writes the module there."""

import os
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

CSRC = Path(__file__).parent.parent / "csrc"
NAME = "_cuda_emulated"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OPTIONS = ["-O1", "-g1", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
MACROS = ["-DSPARSEKERN_CUDA_EMULATED=1", f"-DSPARSEKERN_CUDA_MODULE={NAME}"]
COMPILER = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()


def build(folder):
    """The path of the module, compiled into ``folder``. What has not changed since the last call there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{path}" for path in (CSRC, pybind11.get_include(), sysconfig.get_path("include"))]
    cuda = CSRC / "cuda"
    sources = sorted([*cuda.glob("*.cu"), *cuda.glob("*.cpp"), *cuda.glob("emulation/*.cpp")])
    headers = [*CSRC.rglob("*.h"), Path(__file__)]
    newest_header = max(header.stat().st_mtime for header in headers)

    def compile_one(source):
        target = folder / f"{source.name}.o"
        # The bindings are no kernels: not optimised nor sanitized they compile in a third of the time.
        is_kernel = "pybind11" not in source.read_text()
        options = [*OPTIONS, *SANITIZERS] if is_kernel else [*OPTIONS, "-O0", "-g0"]
        if not (target.exists() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime)):
            command = [*COMPILER, *options, *WARNINGS, *MACROS, *includes, "-x", "c++", "-c", source]
            subprocess.run([*command, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    module = folder / (NAME + sysconfig.get_config_var("EXT_SUFFIX"))
    subprocess.run([*COMPILER, "-shared", *SANITIZERS, *objects, "-o", module], check=True)
    return module


def kernels(module):
    """{place in the module: name} of each instance of a kernel."""
    listed = subprocess.run(["nm", "--demangle", "--defined-only", module], capture_output=True, text=True, check=True)
    # Of functions within a kernel, or made of one, the name goes on behind the arguments, with a lambda's brace.
    kernel = r"sparsekern::cuda::\(anonymous namespace\)::(\w+_kernel(?:<[^(]*>)?)"
    symbol = re.compile(r"^([0-9a-f]+) [tTwW] (?:void )?" + kernel + r"\([^{\n]*\)$", re.MULTILINE)
    return {int(place, 16): name for place, name in symbol.findall(listed.stdout)}


def build_program(source, folder):
    """The path of a program made of one C++ file and the emulation, under the sanitizers."""
    program = folder / source.stem
    parts = [source, CSRC / "cuda/emulation/block.cpp", CSRC / "cuda/queue.cu"]
    command = [*COMPILER, *OPTIONS, *WARNINGS, *MACROS, *SANITIZERS, f"-I{CSRC}", "-x", "c++", *parts]
    subprocess.run([*command, "-o", program], check=True)
    return program


def preload():
    """LD_PRELOAD of a Python that loads a sanitized module; None where the compiler has no sanitizers."""
    found = []
    for library in ("libasan.so", "libubsan.so", "libstdc++.so"):
        path = subprocess.run([*COMPILER, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
        file = Path(path.stdout.strip())
        if not file.is_absolute():
            return None
        found.append(str(file.resolve()))
    return " ".join(found)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
