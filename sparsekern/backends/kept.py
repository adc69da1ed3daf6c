"""What is known of index tensors and kept for as long as they live and are not written to."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sparsekern import _C

T = TypeVar("T")


class Kept(Generic[T]):
    """One object for each group of tensors, gone once one of them has been written to or the last one is no more.

    A tensor written in place has another version, a copied or unpickled one another identity. Writing through ``.data``
    changes neither: torch does not count it.
    """

    def __init__(self) -> None:
        # By the identity of the group's last tensor, which is in no other group: the tensors as they were, the object.
        self.entries: dict[int, tuple[_C.Seen, T]] = {}
        self._references: dict[int, weakref.ref[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, *tensors: Tensor) -> T | None:
        """The group's object, or None."""
        entry = self.entries.get(id(tensors[-1]))
        return entry[1] if entry is not None and entry[0].holds(*tensors) else None

    def put(self, value: T, *tensors: Tensor) -> T | None:
        """Keeps the object for the group and returns it; None, and nothing kept, where a tensor counts no versions.

        Tensors made in inference mode and those without content, on the meta device, do not.
        """
        if any(tensor.is_inference() or tensor.is_meta for tensor in tensors):
            return None
        key = id(tensors[-1])

        def forget(reference: weakref.ref[Tensor]) -> None:
            if self._references.get(key) is reference:
                del self._references[key], self.entries[key]

        self._references[key] = weakref.ref(tensors[-1], forget)
        self.entries[key] = _C.Seen(*tensors), value
        return value


def is_captured(tensor: Tensor) -> bool:
    """Whether what is now computed on the tensor's device is not done but recorded, in a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class KeptOnDevice(Kept[T]):
    """Of an object whose tensors are worked out on the device of its key: none while a CUDA graph is captured.

    Such a graph works them out each time it is replayed, from the indices as they then are. What it makes is memory of
    its own, without contents before the first replay; what was kept before is freed when the indices change.
    """

    def get(self, *tensors: Tensor) -> T | None:
        return None if is_captured(tensors[-1]) else super().get(*tensors)

    def put(self, value: T, *tensors: Tensor) -> T | None:
        return None if is_captured(tensors[-1]) else super().put(value, *tensors)
