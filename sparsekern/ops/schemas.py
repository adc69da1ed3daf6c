"""The operators of ``torch.ops.sparsekern``: schemas, and the shapes and dtypes of their results (fakes).

A topology is five index tensors, always in the order ``ccol, row, crow, col, perm`` (see
:class:`sparsekern.pattern.Pattern`); operators that walk the stored order alone take ``ccol, row``.
Linear operators take matrices, (B, in) and (B, out); conv2d operators (N, C, H, W). ``linear_backward`` and
``conv2d_backward`` give the input's, the values' and, where ``bias_dtype`` is given, the bias's gradient (else a tensor
of no elements).
"""

import torch
from torch import Tensor

from sparsekern.ops import checks

LIBRARY = torch.library.Library("sparsekern", "DEF")

_TOPOLOGY = "Tensor ccol, Tensor row, Tensor crow, Tensor col, Tensor perm"
_STORED = "Tensor ccol, Tensor row"
_GEOMETRY = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"

SCHEMAS = {
    "linear": f"(Tensor x, Tensor w, Tensor? bias, {_TOPOLOGY}) -> Tensor",
    "linear_backward": (
        f"(Tensor grad, Tensor x, Tensor w, {_STORED}, *, ScalarType? bias_dtype=None) -> (Tensor, Tensor, Tensor)"
    ),
    "linear_input_grad": f"(Tensor grad, Tensor w, {_STORED}) -> Tensor",
    "linear_weight_grad": f"(Tensor grad, Tensor x, {_STORED}, *, ScalarType? dtype=None) -> Tensor",
    "conv2d": f"(Tensor x, Tensor w, Tensor? bias, {_TOPOLOGY}, {_GEOMETRY}) -> Tensor",
    "conv2d_backward": (
        f"(Tensor grad, Tensor x, Tensor w, {_STORED}, {_GEOMETRY}, *, ScalarType? bias_dtype=None)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "conv2d_input_grad": f"(Tensor grad, Tensor w, {_STORED}, SymInt[2] input_size, {_GEOMETRY}) -> Tensor",
    "conv2d_weight_grad": (f"(Tensor grad, Tensor x, {_STORED}, {_GEOMETRY}, *, ScalarType? dtype=None) -> Tensor"),
}
for _name, _schema in SCHEMAS.items():
    # torch.compile is not to capture these in CUDA graphs of its own: at their first call backends make what they keep
    # of a topology, in memory that a graph would claim, and at a topology's first they read its indices.
    LIBRARY.define(_name + _schema, tags=(torch.Tag.cudagraph_unsafe,))


def weight_grad_dtype(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a weight gradient: as asked, else float64 for float64 activations and float32 for others.

    Raises:
        TypeError: if another dtype is asked for than the activations' or, of half ones, float32.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if dtype not in (None, wide, x.dtype):
        raise TypeError(f"dtype is {dtype}; with input of dtype {x.dtype} expected {wide} or {x.dtype}")
    return dtype or wide


@torch.library.register_fake("sparsekern::linear", lib=LIBRARY)
def _linear(x, w, bias, ccol, row, crow, col, perm):  # type: ignore[no-untyped-def]
    checks.linear(x, w, bias, ccol, row, crow, col, perm)
    return x.new_empty(x.shape[0], crow.shape[0] - 1)


@torch.library.register_fake("sparsekern::linear_backward", lib=LIBRARY)
def _linear_backward(grad, x, w, ccol, row, bias_dtype=None):  # type: ignore[no-untyped-def]
    checks.linear_backward(grad, x, w, ccol, row)
    dbias = x.new_empty(0) if bias_dtype is None else x.new_empty(grad.shape[1], dtype=bias_dtype)
    return x.new_empty(x.shape), w.new_empty(w.shape), dbias


@torch.library.register_fake("sparsekern::linear_input_grad", lib=LIBRARY)
def _linear_input_grad(grad, w, ccol, row):  # type: ignore[no-untyped-def]
    checks.linear_input_grad(grad, w, ccol, row)
    return grad.new_empty(grad.shape[0], ccol.shape[0] - 1)


@torch.library.register_fake("sparsekern::linear_weight_grad", lib=LIBRARY)
def _linear_weight_grad(grad, x, ccol, row, dtype=None):  # type: ignore[no-untyped-def]
    checks.linear_weight_grad(grad, x, ccol, row)
    return x.new_empty(row.shape, dtype=weight_grad_dtype(x, dtype))


@torch.library.register_fake("sparsekern::conv2d", lib=LIBRARY)
def _conv2d(x, w, bias, ccol, row, crow, col, perm, *geometry):  # type: ignore[no-untyped-def]
    out_size = checks.conv2d(x, w, bias, ccol, row, crow, col, perm, *geometry)
    return x.new_empty(x.shape[0], crow.shape[0] - 1, *out_size)


@torch.library.register_fake("sparsekern::conv2d_backward", lib=LIBRARY)
def _conv2d_backward(grad, x, w, ccol, row, *geometry, bias_dtype=None):  # type: ignore[no-untyped-def]
    checks.conv2d_backward(grad, x, w, ccol, row, *geometry)
    dbias = x.new_empty(0) if bias_dtype is None else x.new_empty(grad.shape[1], dtype=bias_dtype)
    return x.new_empty(x.shape), w.new_empty(w.shape), dbias


@torch.library.register_fake("sparsekern::conv2d_input_grad", lib=LIBRARY)
def _conv2d_input_grad(grad, w, ccol, row, input_size, *geometry):  # type: ignore[no-untyped-def]
    channels = checks.conv2d_input_grad(grad, w, ccol, row, input_size, *geometry)
    return grad.new_empty(grad.shape[0], channels, *input_size)


@torch.library.register_fake("sparsekern::conv2d_weight_grad", lib=LIBRARY)
def _conv2d_weight_grad(grad, x, ccol, row, *geometry, dtype=None):  # type: ignore[no-untyped-def]
    checks.conv2d_weight_grad(grad, x, ccol, row, *geometry)
    return x.new_empty(row.shape, dtype=weight_grad_dtype(x, dtype))
