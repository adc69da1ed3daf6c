"""Edges that may grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sparsekern.backends.topology.numbers import Number
from sparsekern.pattern import Pattern

if TYPE_CHECKING:
    from typing_extensions import Self


class Candidates(Pattern):
    """Edges that a layer does not have, as a pattern of its shape.

    Where how many were found is not known to the host, the pattern is as large as was asked for, and those of its edges
    that were not found stand for nothing; they may be edges of the layer.

    Attributes:
        valid: (nnz,) bool, which edges were found; None where all were.
        finite: whether what they were drawn by was finite. Where it was not, they mean nothing.
    """

    __slots__ = ("finite", "valid")

    valid: Tensor | None
    finite: Number

    @classmethod
    def drawn(
        cls,
        shape: tuple[int, int],
        ccol_indices: Tensor,
        row_indices: Tensor,
        valid: Tensor | None = None,
        finite: Number = True,
    ) -> Self:
        """From a good CSC pair."""
        candidates = cls.from_stored(shape, ccol_indices, row_indices)
        candidates.valid = valid
        candidates.finite = finite
        return candidates

    @classmethod
    def of(cls, pattern: Pattern) -> Candidates:
        """A pattern's edges, all of them found; itself where it is one of candidates already."""
        if isinstance(pattern, Candidates):
            return pattern
        return cls.drawn(pattern.shape, pattern.ccol_indices, pattern.row_indices)

    @property
    def found(self) -> Number:
        """How many edges were found."""
        return self.nnz if self.valid is None else self.valid.sum()
