"""`forbid_dense`: a context in which making a tensor of a sparse layer's dense size is an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sparsekern.nn import SparseConv2d, SparseLayer

Shape = tuple[int, ...]


class DenseTensorError(RuntimeError):
    """A tensor of a sparse layer's dense size was made under `forbid_dense`."""


@contextmanager
def forbid_dense(model: nn.Module, *, batch_sizes: Iterable[int] = (), allowance: float = 4.0) -> Iterator[None]:
    """Raises DenseTensorError, naming the operator, the shape and the layer, when an operator makes a tensor of
    the dense size of one of `model`'s sparse layers: in forward, in backward, in an optimizer's step, in a
    topology update, in saving and loading, whatever module or library calls the operator.

    What is looked at is every operator's newly allocated output: views, in-place results, tensors on the meta
    device and the indices and values of sparse tensors take no dense memory. Inside the `sparsekern` operators
    and other custom operators each inner operator is looked at too. The rule, in this order:

    1. The model's own: a tensor with the shape of one of its dense parameters or buffers is allowed.
    2. The dense weight itself: a tensor that has, in any order and not counting dimensions of size 1, a layer's
       dense shape raises: (rows, columns), for a convolution also (C_out, C_in / groups, kh, kw) and (C_out,
       C_in / groups, kh * kw), for groups also (groups, rows / groups, columns). So does a vector of
       rows * columns elements, when rule 3 does not allow it.
    3. What a sparse step needs: up to `allowance` * (nnz + rows + columns) elements, of the layer for which this
       is largest, are allowed.
    4. Activations: a tensor one of whose dimensions is a multiple of a batch size is allowed. Batch sizes are
       those in `batch_sizes` and the first dimension of every batch that the model, or one of its sparse
       layers, has been called with in this context. None is checked against rule 5 while no batch size is known.
    5. Anything else of at least a sparse layer's dense size raises.

    An activation can have the shape of a dense weight by chance, and a batch size that divides a layer's
    dimensions lets more through under rule 4: a prime batch size such as 37, no divisor of the layers' sizes,
    makes the check sharp. With a batch of 1 only rules 1 and 2 can tell.

    Not seen: memory that no torch operator allocates (scratch of C++ kernels, NumPy), which is what measurements
    of resident memory are for, and work in other processes or in threads that do not inherit torch's dispatch
    state (autograd's do).

    Args:
        model: a module that contains sparse layers, now; layers added later are not known.
        batch_sizes: sizes that mark activations or data, besides those seen.
        allowance: of rule 3.

    Raises:
        ValueError: `model` has no sparse layer, so that nothing would be forbidden.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
    if not layers:
        raise ValueError("model has no sparse layer, so there is nothing dense to forbid")
    watch = _Watch(model, layers, set(batch_sizes), allowance)
    with ExitStack() as stack:
        for module in {id(m): m for m in (model, *layers.values())}.values():
            handle = module.register_forward_pre_hook(watch.see_batch, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        stack.enter_context(watch)
        yield


class _Watch(TorchDispatchMode):
    def __init__(
        self, model: nn.Module, layers: dict[str, SparseLayer], batch_sizes: set[int], allowance: float
    ) -> None:
        super().__init__()
        self.batch_sizes = batch_sizes
        self.sizes = {name: math.prod(layer.matrix_shape) for name, layer in layers.items()}
        self.smallest = min(self.sizes.values())
        self.step_needs = int(allowance * max(layer.nnz + sum(layer.matrix_shape) for layer in layers.values()))
        self.forms: dict[Shape, str] = {}  # sorted dense shapes of the layers
        for name, layer in layers.items():
            for shape in _dense_forms(layer):
                self.forms.setdefault(_sorted(shape), name or "the model")
        held = [*model.parameters(), *model.buffers()]
        self.own = {tuple(tensor.shape) for tensor in held}

    def see_batch(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor) and value.dim() >= 2:
                if value.shape[0] > 0:
                    self.batch_sizes.add(value.shape[0])
                return

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self._call(func, args, kwargs or {})
        made = [out for out in tree_iter(result) if isinstance(out, Tensor) and out.numel() > 0]
        if made:
            given = {_storage(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)} - {None}
            for out in made:
                if out.device.type != "meta" and _storage(out) not in given:
                    self._check(func, out)
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the operator; a custom one with this mode still on, so that what it calls is looked at too."""
        if func.namespace not in ("aten", "prim", "prims"):
            devices = {t.device.type for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            if len(devices) == 1:
                key = torch._C._dispatch_key_for_device(devices.pop())
                if torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), key):
                    with self:
                        return func.redispatch(
                            torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)), *args, **kwargs
                        )
        return func(*args, **kwargs)

    def _check(self, func: Any, out: Tensor) -> None:
        shape = tuple(out.shape)
        if shape in self.own:  # 1
            return
        held = _elements(out)
        form = _sorted(shape)
        layer = self.forms.get(form) if out.layout == torch.strided else None
        if layer is not None and len(form) >= 2:  # 2
            self._fail(func, out, layer, "has its dense shape")
        if held < self.smallest or held <= self.step_needs:  # 3
            return
        if layer is not None:
            self._fail(func, out, layer, "has its dense size")
        if not self.batch_sizes or any(n % b == 0 for n in shape if n for b in self.batch_sizes):  # 4
            return
        name = max((name for name, size in self.sizes.items() if size <= held), key=self.sizes.__getitem__)
        self._fail(func, out, name or "the model", "is no smaller than its dense weight")  # 5

    def _fail(self, func: Any, out: Tensor, layer: str, why: str) -> None:
        shape, dtype = tuple(out.shape), str(out.dtype).removeprefix("torch.")
        raise DenseTensorError(
            f"{func.name()} made a {dtype} tensor of shape {shape} ({_elements(out):,} elements), which {why}: "
            f"sparse layer {layer!r}. If it is an activation, use a prime batch size, "
            f"different from the layers' sizes (batch sizes seen: {sorted(self.batch_sizes)})"
        )


def _dense_forms(layer: SparseLayer) -> Iterator[Shape]:
    rows, columns = layer.matrix_shape
    yield rows, columns
    yield (rows * columns,)
    if isinstance(layer, SparseConv2d):
        kh, kw = layer.kernel_size
        yield rows, columns // (kh * kw), kh, kw
        yield rows, columns // (kh * kw), kh * kw
        yield layer.groups, rows // layer.groups, columns


def _sorted(shape: Iterable[int]) -> Shape:
    return tuple(sorted(n for n in shape if n != 1))


def _storage(tensor: Tensor) -> int | None:
    """Identifies the memory that a strided tensor stands on; None for other layouts."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


def _elements(tensor: Tensor) -> int:
    """Elements that the tensor's memory holds: all of its storage, or a sparse tensor's values."""
    if tensor.layout == torch.strided:
        return tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.layout in (
        torch.sparse_coo,
        torch.sparse_csr,
        torch.sparse_csc,
        torch.sparse_bsr,
        torch.sparse_bsc,
    ):
        return (tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()).numel()
    return tensor.numel()
