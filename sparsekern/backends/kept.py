"""What is known of index tensors and kept for as long as they live and are not written to."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
# A tensor as it was: itself, its version, where its data lies, its elements.
_Seen = tuple["weakref.ref[Tensor]", int, int, int]


class Kept(Generic[T]):
    """One object for each group of tensors, gone once one of them has been written to or the last one is no more.

    A tensor written in place has another version, a copied or unpickled one another identity. Writing through ``.data``
    changes neither: torch does not count it.
    """

    def __init__(self) -> None:
        # By the identity of the group's last tensor, which is in no other group.
        self._kept: dict[int, tuple[tuple[_Seen, ...], T]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, *tensors: Tensor) -> T | None:
        """The group's object, or None."""
        entry = self._kept.get(id(tensors[-1]))
        if entry is None:
            return None
        for tensor, (reference, version, address, size) in zip(tensors, entry[0], strict=True):
            if reference() is not tensor or version != tensor._version:
                return None
            if address != tensor.data_ptr() or size != tensor.numel():
                return None
        return entry[1]

    def put(self, value: T, *tensors: Tensor) -> T | None:
        """Keeps the object for the group and returns it; None, and nothing kept, where a tensor counts no versions.

        Tensors made in inference mode and those without content, on the meta device, do not.
        """
        if any(tensor.is_inference() or tensor.is_meta for tensor in tensors):
            return None
        key = id(tensors[-1])

        def forget(reference: weakref.ref[Tensor]) -> None:
            entry = self._kept.get(key)
            if entry is not None and entry[0][-1][0] is reference:
                del self._kept[key]

        references = [weakref.ref(tensor) for tensor in tensors[:-1]] + [weakref.ref(tensors[-1], forget)]
        seen = tuple(
            (reference, tensor._version, tensor.data_ptr(), tensor.numel())
            for reference, tensor in zip(references, tensors, strict=True)
        )
        self._kept[key] = seen, value
        return value
