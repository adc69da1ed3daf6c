"""What is derived from index tensors and kept for as long as they live and are not written to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
# A tensor as it was: itself, its version, where its data lies.
_Seen = tuple["weakref.ref[Tensor]", int, int]


class Kept(Generic[T]):
    """One object of `make()` for each pair of tensors, a new one once either of them has been written to.

    A tensor written in place has another version, a copied one another identity. Writing through ``.data`` changes
    neither: torch does not count it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept: dict[int, tuple[_Seen, _Seen, T]] = {}

    def get(self, first: Tensor, second: Tensor) -> T | None:
        """The pair's object; None for tensors that count no versions (made in inference mode)."""
        entry = self._kept.get(id(second))
        if entry is not None and _is(entry[0], first) and _is(entry[1], second):
            return entry[2]
        if first.is_inference() or second.is_inference():
            return None
        key = id(second)

        def forget(reference: weakref.ref[Tensor]) -> None:
            found = self._kept.get(key)
            if found is not None and found[1][0] is reference:
                del self._kept[key]

        value = self._make()
        self._kept[key] = _seen(first, weakref.ref(first)), _seen(second, weakref.ref(second, forget)), value
        return value


def _seen(tensor: Tensor, reference: weakref.ref[Tensor]) -> _Seen:
    return reference, tensor._version, tensor.data_ptr()


def _is(seen: _Seen, tensor: Tensor) -> bool:
    return seen[0]() is tensor and seen[1] == tensor._version and seen[2] == tensor.data_ptr()
