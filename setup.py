"""Builds sparsekern._C (an object per source, each instruction set's kernels with its flags) and sparsekern._cuda.

The latter is optional. SPARSEKERN_CUDA says: 0 never, 1 always (an error where there is no nvcc), by default where nvcc
is found and torch is built for CUDA. NVCC names the compiler, SPARSEKERN_CUDA_ARCHS the GPUs, by default "80;90a".
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "sparsekern is built against the torch that it will run with: install torch>=2.11 first (pip install torch)."
    )
try:
    import pybind11
    from pybind11.setup_helpers import Pybind11Extension, build_ext
except ImportError:
    sys.exit("sparsekern is built with pybind11: install it first (pip install pybind11).")

ROOT = Path(__file__).parent
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
X86_FLAGS = {
    "csrc/isa/avx512_bf16.cpp": [*AVX512, "-mavx512bf16"],
    "csrc/isa/avx512.cpp": AVX512,
    "csrc/isa/avx2.cpp": AVX2,
}
CUDA_FOLDER = "csrc/cuda/"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# Set by `make sanitize`, which builds in a folder of its own.
SANITIZE = os.environ.get("SPARSEKERN_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OPTIMIZED = ["-O3", "-g0"]
# Python asks for -fwrapv, under which no signed overflow is an error.
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", *SANITIZERS]


def relative(paths):
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def cpu_sources():
    sources = relative((ROOT / "csrc").rglob("*.cpp"))
    return [source for source in sources if (IS_X86 or source not in X86_FLAGS) and not source.startswith(CUDA_FOLDER)]


def find_nvcc():
    """The path of nvcc, or None."""
    named = os.environ.get("NVCC")
    if named:
        return shutil.which(named) or sys.exit(f"NVCC is {named!r}, which is no program; expected the path of nvcc")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [shutil.which("nvcc"), *(Path(home, "bin/nvcc") for home in [*homes, "/usr/local/cuda"])]
    return next((str(place) for place in places if place and Path(place).exists()), None)


def wanted_nvcc():
    """The nvcc to build sparsekern._cuda with, or None where it is not to be built."""
    wanted = os.environ.get("SPARSEKERN_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"SPARSEKERN_CUDA is {wanted!r}; expected 0, 1 or auto")
    if wanted == "0" or (wanted == "auto" and torch.version.cuda is None):
        return None
    nvcc = find_nvcc()
    if nvcc is None and wanted == "1":
        sys.exit("SPARSEKERN_CUDA is 1, but there is no nvcc: install the CUDA toolkit, or name it by NVCC")
    return nvcc


class BuildKernels(build_ext):
    """Compiles the sources side by side and only those that changed."""

    def build_extension(self, ext):
        if ext is cuda_kernels:
            try:
                self.build_cuda(ext)
            except (subprocess.CalledProcessError, OSError) as error:
                # What an earlier build left is not to be taken for this one's.
                built = Path(self.get_ext_fullpath(ext.name))
                for stale in (built, ROOT / "sparsekern" / built.name):
                    stale.unlink(missing_ok=True)
                if os.environ.get("SPARSEKERN_CUDA") == "1":
                    raise
                print(f"sparsekern._cuda was not built, the package works without it: {error}", file=sys.stderr)
            return
        newest_header = max(os.path.getmtime(ROOT / header) for header in [*ext.depends, "setup.py"])

        def compile_one(source):
            target = Path(self.build_temp, *self.compiler.object_filenames([source]))
            if target.exists() and target.stat().st_mtime > max(newest_header, os.path.getmtime(source)):
                return str(target)
            (compiled,) = self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                include_dirs=ext.include_dirs,
                debug=self.debug,
                extra_postargs=[*ext.extra_compile_args, *X86_FLAGS.get(source, [])],
            )
            return compiled

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        self.link(ext, objects)

    def build_cuda(self, ext):
        """nvcc compiles all of it and links its runtime in: no header or library of torch is needed, of any version."""
        newest_header = max(os.path.getmtime(ROOT / header) for header in [*ext.depends, "setup.py"])
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
        # For later GPUs the driver compiles what the first of them understands.
        targets.append(f"-gencode=arch=compute_{CUDA_ARCHS[0]},code=compute_{CUDA_ARCHS[0]}")
        options = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden", *targets]
        includes = [f"-I{path}" for path in ext.include_dirs]

        def compile_one(source):
            target = Path(self.build_temp, source).with_suffix(".o")
            if not (target.exists() and target.stat().st_mtime > max(newest_header, os.path.getmtime(source))):
                target.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run([NVCC, *options, *includes, "-c", source, "-o", target], check=True)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([NVCC, "-shared", "-cudart", "static", *objects, "-o", target], check=True)

    def link(self, ext, objects):
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=ext.libraries,
            library_dirs=ext.library_dirs,
            extra_postargs=ext.extra_link_args,
            debug=self.debug,
            target_lang="c++",
        )


kernels = Pybind11Extension(
    "sparsekern._C",
    cpu_sources(),
    depends=relative((ROOT / "csrc").rglob("*.h")),
    # pybind11 first: torch carries a copy of its own.
    include_dirs=["csrc", pybind11.get_include(), *cpp_extension.include_paths()],
    define_macros=[("SPARSEKERN_X86", "1" if IS_X86 else "0"), ("SPARSEKERN_SANITIZE", "1" if SANITIZE else "0")],
    extra_compile_args=[
        *(SANITIZED if SANITIZE else OPTIMIZED),
        *("-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"),
    ],
    extra_link_args=SANITIZERS if SANITIZE else [],
    # torch is imported before the extension, so its libraries are found already loaded: no rpath is needed.
    library_dirs=cpp_extension.library_paths(),
    libraries=["torch_cpu"],
    cxx_std=17,
)

NVCC = wanted_nvcc()
CUDA_ARCHS = os.environ.get("SPARSEKERN_CUDA_ARCHS", "80;90a").split(";")
cuda_kernels = Pybind11Extension(
    "sparsekern._cuda",
    [*relative((ROOT / CUDA_FOLDER).glob("*.cu")), *relative((ROOT / CUDA_FOLDER).glob("*.cpp"))],
    depends=relative((ROOT / CUDA_FOLDER).glob("*.h")),
    include_dirs=["csrc", pybind11.get_include(), sysconfig.get_path("include")],
    optional=True,
)

setup(ext_modules=[kernels, cuda_kernels] if NVCC else [kernels], cmdclass={"build_ext": BuildKernels})
