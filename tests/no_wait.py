"""A context in which what would make the host wait for a device is an error."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten

# Their results, or the sizes of these, are known to the host alone once the device is done.
READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten.histc,
    aten.allclose,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class NoWait(TorchDispatchMode):
    """Raises where an operator on tensors of ``device`` reads results, or copies tensors from or to another device.

    Operators of sparsekern count as one: what a backend does inside is not looked at.
    """

    def __init__(self, device="cpu"):
        super().__init__()
        self.device = device
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [tensor for tensor in tree_iter((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        name, packet = str(func), func.overloadpacket
        waits = packet in READS or (name == "aten.repeat_interleave.Tensor" and kwargs.get("output_size") is None)
        if packet in INDEXING:
            waits = any(
                tensor.dtype in (torch.bool, torch.uint8) for tensor in tree_iter(args[1]) if tensor is not None
            )
        if waits:
            raise AssertionError(f"{name} waits for the device")
        result = func(*args, **kwargs)
        made = [tensor for tensor in tree_iter(result) if isinstance(tensor, torch.Tensor)]
        places = {
            tensor.device.type for tensor in [*given, *made] if tensor.dim() or packet in (aten._to_copy, aten.copy_)
        }
        if self.device in places and len(places) > 1:
            raise AssertionError(f"{name} copies between {' and '.join(sorted(places))}")
        self.operators += self.device in places
        return result
