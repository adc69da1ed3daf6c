"""Says in one line each what this machine lacks: `python3 .ci/check_machine.py venv|build|train|test`.

The Makefile asks before each step. Runs under Python 3.6 too, so that an old one gets a
sentence, not a SyntaxError.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig

BUILD = {"torch": "torch", "pybind11": "pybind11", "setuptools": "setuptools"}
TRAIN = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "tyro": "tyro",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
}
TEST = dict(TRAIN, pytest="pytest", hypothesis="hypothesis", psutil="psutil", scipy="scipy")


def missing_packages(modules):
    names = sorted({package for module, package in modules.items() if importlib.util.find_spec(module) is None})
    if not names:
        return []
    # Naming the torch that is there keeps pip from replacing it by another build.
    torch = ""
    if "torch" not in names:
        from importlib.metadata import version

        torch = f" torch=={version('torch')}"
    install = " ".join([sys.executable, "-m pip install" + torch, *names])
    return [f"Python packages are missing: {', '.join(names)}\n    {install}"]


def missing_for_venv():
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        return [
            "this Python cannot make a virtual environment (on Debian: apt-get install python3-venv).\n"
            "    A Python that has torch already is used as it is by: make train PYTHON=python3 VENV=none"
        ]
    return []


def missing_for_build():
    found = []
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        found.append(f"Python's headers are missing: no {header} (on Debian: apt-get install python3-dev)")
    compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if shutil.which(compiler) is None:
        found.append(f"no C++ compiler: {compiler} (on Debian: apt-get install g++)")
    return found


def main(step):
    if sys.version_info < (3, 10):  # noqa: UP036
        found = [f"sparsekern needs Python 3.10 or later; {sys.executable} is {sys.version.split()[0]}"]
    elif step == "venv":
        found = missing_for_venv() + missing_for_build()
    elif step == "build":
        found = missing_for_build() + missing_packages(BUILD)
    else:
        found = missing_packages(TEST if step == "test" else TRAIN)
    for line in found:
        sys.stderr.write("sparsekern: " + line + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
