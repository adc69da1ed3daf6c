"""Builds sparsekern._C: one object per source, each instruction set's kernels with that set's flags."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
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
    return [source for source in sources if IS_X86 or source not in X86_FLAGS]


class BuildKernels(build_ext):
    """Compiles the sources side by side and only those that changed."""

    def build_extension(self, ext):
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

setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels})
