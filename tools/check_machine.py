"""Says in one line each what this machine lacks: `python3 tools/check_machine.py venv|build|train|test`.

The Makefile asks before each step. Runs under any Python 3, so that an old one gets a sentence, not a SyntaxError.
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

        torch = ' "torch==%s"' % version("torch")  # noqa: UP031
    install = " ".join([sys.executable, "-m pip install" + torch, *names])
    return ["Python packages are missing: %s\n    %s" % (", ".join(names), install)]  # noqa: UP031


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
        found.append("Python's headers are missing: no %s (on Debian: apt-get install python3-dev)" % header)  # noqa: UP031
    compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if shutil.which(compiler) is None:
        found.append("no C++ compiler: %s (on Debian: apt-get install g++)" % compiler)  # noqa: UP031
    return found


def main(step):
    if sys.version_info < (3, 10):
        found = ["sparsekern needs Python 3.10 or later; %s is %s" % (sys.executable, sys.version.split()[0])]  # noqa: UP031
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
