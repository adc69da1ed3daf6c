"""Reads pickles of numbers, text and arrays, and runs nothing that they ask for."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

try:
    from numpy._core.multiarray import _reconstruct
except ImportError:  # numpy before 2.0
    from numpy.core.multiarray import _reconstruct  # type: ignore[no-redef]


def encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in an old protocol: as text of this one encoding."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}; expected 'latin1'")
    return text.encode("latin-1")


# All that an array of numbers needs; under the module names that numpy has had.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """Knows no other class or function than those of `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which arrays of numbers do not need; nothing of it was run"
            ) from None


def unpickle(content: bytes) -> Any:
    """The object in a pickle of protocol 4 or before, Python 2's strings as text of latin-1.

    Raises ValueError for a pickle that is damaged or that holds more than containers, numbers, text and arrays.
    """
    try:
        return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly any
        raise ValueError(f"its pickle cannot be read: {error}") from error
