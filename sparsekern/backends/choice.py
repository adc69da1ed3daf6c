"""Which backend computes the products of tensors on a device: one place that says, and lets the user say otherwise.

It says nothing on whether a dense layer would be faster: that is measured, see :mod:`sparsekern.crossover`.

The operators call what :data:`cpu_products` and :data:`cuda_products` hold. A choice rebinds these, so that it costs a
call nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsekern.backends import cpu, cuda, reference, triton
from sparsekern.backends.cuda import Extent
from sparsekern.backends.topology import cpu as cpu_topology
from sparsekern.backends.topology import reference as reference_topology

BACKENDS: dict[str, ModuleType] = {"reference": reference, "cpu": cpu, "triton": triton, "cuda": cuda}
NAMES = ("auto", *BACKENDS)
VARIABLE = "SPARSEKERN_BACKEND"

_KINDS = ("", "_backward", "_input_grad", "_weight_grad")
_PRODUCTS = tuple(layer + kind for layer in ("linear", "conv2d") for kind in _KINDS)

cpu_products = SimpleNamespace()
cuda_products = SimpleNamespace()
_current = "auto"

# What "auto" takes for CUDA tensors: the first of these that is there. Triton first, as neither has run on a GPU and
# Triton's machine code comes from a compiler that many use; measurements are to decide.
_PREFERRED_ON_CUDA = ("triton", "cuda", "reference")

# linear_direct(x, w, bias, *topology): the short way of small products, see backends/_cpu_linear.py; None where the
# choice or the arguments allow none.
linear_direct: Callable[..., Tensor | None]


def _is_there(name: str) -> bool:
    if name == "triton":
        return find_spec("triton") is not None
    return cuda.is_built() if name == "cuda" else True


def _for_device(name: str, device_type: str) -> str:
    """The backend that ``name``, "auto" among them, means for a device; ValueError where it cannot serve that one."""
    if device_type not in ("cpu", "cuda"):
        raise ValueError(f"no backend computes products on device {device_type!r}; expected cpu or cuda")
    if name == "auto":
        if device_type == "cpu":
            return "cpu"
        return next(backend for backend in _PREFERRED_ON_CUDA if _is_there(backend))
    if name == "cpu" and device_type != "cpu":
        raise ValueError(
            f"backend 'cpu' cannot take tensors on {device_type}; expected 'auto', 'triton', 'cuda' or 'reference', or "
            "tensors on the CPU"
        )
    if name == "triton" and device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "backend 'triton' cannot take tensors on the CPU; expected 'auto', 'cpu' or 'reference', or "
            "TRITON_INTERPRET=1 in the environment before triton is imported, for its (slow) interpreter"
        )
    if name == "cuda" and device_type == "cpu" and not cuda.is_emulated():
        raise ValueError(
            "backend 'cuda' cannot take tensors on the CPU; expected 'auto', 'cpu' or 'reference', or tensors on a "
            "CUDA device"
        )
    return name


def _refusing(error: ValueError) -> Callable[..., Any]:
    message = str(error)

    def refuse(*args: Any, **options: Any) -> Any:
        raise ValueError(message)

    return refuse


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} is {name!r}; expected one of {', '.join(NAMES)}")
    if name == "triton" and not _is_there(name):
        raise ImportError(f'{source} is "triton", which is not installed: pip install "torch==<yours>" triton')
    if name == "cuda" and not _is_there(name):
        raise ImportError(
            f'{source} is "cuda", but this build has no CUDA kernels: where nvcc is installed, SPARSEKERN_CUDA=1 pip '
            "install --no-build-isolation --force-reinstall --no-deps . (see docs/gpu.md)"
        )
    return name


def _use(name: str) -> None:
    global _current, linear_direct
    _current = name
    for device_type, products in (("cpu", cpu_products), ("cuda", cuda_products)):
        try:
            backend = BACKENDS[_for_device(name, device_type)]
            functions = {product: getattr(backend, product) for product in _PRODUCTS}
        except ValueError as error:
            functions = dict.fromkeys(_PRODUCTS, _refusing(error))
        products.__dict__.update(functions)
    linear_direct = cpu.linear_direct if name in ("auto", "cpu") else reference.linear_direct


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the ``with`` block, the products with sparse weights are computed by this backend.

    Args:
        name: "auto" (C++ kernels for CPU tensors; for CUDA tensors Triton's where triton is installed, else the CUDA
            kernels where they were built, else the reference), "cpu", "triton", "cuda" or "reference" (plain torch:
            slow, any device). What Triton has no kernel for (float64, GPUs before sm_80) goes through the reference,
            what the CUDA backend has none for through Triton or the reference. "reference" also has topologies on the
            CPU made and changed by plain torch, as they are on a GPU: other random draws from the same seed.

    The choice holds for all threads of the process, and for what is computed within the block: a backward pass after it
    goes its own way. Outside of any block the environment variable SPARSEKERN_BACKEND says, by default "auto".

    Raises:
        ValueError: at once for another name; from the product, where the backend cannot take tensors of that device.
        ImportError: "triton" where it is not installed, "cuda" where it was not built.
    """
    _checked(name, "name")
    before = _current
    _use(name)
    try:
        yield
    finally:
        _use(before)


def chosen(product: str, dtype: torch.dtype, device: torch.device, extent: Extent | None = None) -> str:
    """The backend that now computes a product, "linear" or "conv2d", of activations of this dtype on this device.

    Args:
        extent: of a linear product's matrix, if it is known: what is too large or too sparse for the CUDA kernels goes
            elsewhere.

    Raises:
        ValueError: where the backend that was asked for cannot take tensors of that device.
    """
    name = _for_device(_current, device.type)
    if name == "cuda":
        instead = cuda.elsewhere(product, dtype, device, extent)
        return name if instead is None else instead.__name__.rpartition(".")[2]
    return "reference" if name == "triton" and not triton.serves(product, dtype, device) else name


def topology_of(device: torch.device) -> ModuleType:
    """What topologies on a device are made and changed with: :mod:`sparsekern.backends.topology`'s cpu or reference.

    Tensors on the CPU go through the extension, unless the reference was asked for; all others through plain torch.
    """
    return cpu_topology if device.type == "cpu" and _current != "reference" else reference_topology


_use(_checked(os.environ.get(VARIABLE, "auto"), VARIABLE))
