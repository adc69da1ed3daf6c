"""Has Triton's interpreter refuse what a kernel reads or writes outside of the tensors that it is given.

A GPU reads what lies there, or faults. Only imported where the interpreter runs the kernels.
"""

import numpy
import torch
from triton.runtime import interpreter


class _Watched:
    """The interpreter's functions; those that go to memory look at the addresses first."""

    def __init__(self, functions):
        self._functions = functions
        self.extents = []  # of the kernel's tensors: address of the first byte, and after the last

    def __getattr__(self, name):
        return getattr(self._functions, name)

    def load(self, addresses, mask, other, dtype):
        self._look("reads", addresses, mask, numpy.dtype(dtype).itemsize)
        return self._functions.load(addresses, mask, other, dtype)

    def store(self, addresses, value, mask):
        self._look("writes", addresses, mask, value.dtype.itemsize)
        return self._functions.store(addresses, value, mask)

    def atomic_rmw(self, operation, addresses, value, mask, order):
        self._look("changes", addresses, mask, value.dtype.itemsize)
        return self._functions.atomic_rmw(operation, addresses, value, mask, order)

    def _look(self, does, addresses, mask, size):
        at = numpy.asarray(addresses, dtype=numpy.uint64)[numpy.asarray(mask, dtype=bool)]
        outside = numpy.ones(at.shape, dtype=bool)
        for first, end in self.extents:
            outside &= (at < first) | (at + numpy.uint64(size) > end)
        if outside.any():
            raise IndexError(f"a kernel {does} {outside.sum()} elements outside of its tensors")


def _extent(tensor):
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return numpy.uint64(first), numpy.uint64(first + (last + 1) * tensor.element_size() if tensor.numel() else first)


def watch():
    """From now on, in this process."""
    if isinstance(interpreter._interpreter, _Watched):
        return
    watched = interpreter._interpreter = _Watched(interpreter._interpreter)
    launched = interpreter.GridExecutor._init_args_hst

    def on_the_host(self, arguments, named):
        arguments, named = launched(self, arguments, named)
        tensors = (each for each in (*arguments, *named.values()) if isinstance(each, torch.Tensor))
        watched.extents = [_extent(tensor) for tensor in tensors]
        return arguments, named

    interpreter.GridExecutor._init_args_hst = on_the_host
