"""A layer's topology: which edges a sparse matrix has, in the stored order and transposed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsekern.backends.choice import topology_of
from sparsekern.backends.kept import Kept
from sparsekern.backends.topology.numbers import Number
from sparsekern.backends.topology.seed import draw_seed
from sparsekern.backends.topology.writes import Writes

if TYPE_CHECKING:
    from typing_extensions import Self

# Pointer arrays (ccol_indices, crow_indices, permutation) are int32 below this many edges, int64 from it on.
INT32_EDGES = 2**31
_INT32_MAX = 2**31 - 1
_NAMES = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "permutation")

__all__ = ["INT32_EDGES", "Pattern", "Tensors", "check_csc", "check_tensors", "draw_seed", "pointer_dtype"]

Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def pointer_dtype(nnz: int) -> torch.dtype:
    """The dtype of the pointer arrays of a pattern with ``nnz`` edges."""
    return torch.int32 if nnz < INT32_EDGES else torch.int64


class Pattern:
    """The nonzeros of a ``(rows, cols)`` matrix, stored by column, with the transpose derived from them.

    Attributes:
        shape: ``(rows, cols)``.
        ccol_indices: ``(cols + 1,)`` int32 (int64 from 2**31 edges on); column ``c`` holds the stored edges
            ``ccol_indices[c]`` to ``ccol_indices[c + 1]``.
        row_indices: ``(nnz,)`` int32, ascending within each column.
        crow_indices: ``(rows + 1,)``, like ``ccol_indices``, for the rows of the same edges.
        col_indices: ``(nnz,)`` int32, ascending within each row.
        permutation: ``(nnz,)``, like ``ccol_indices``: the edge at place ``j`` by rows is stored edge
            ``permutation[j]``.

    The number of edges never changes; ``replace_edges`` writes other edges into the same tensors. The last three are
    derived when they are first asked for.
    Everything is worked out on the pattern's own device (:func:`sparsekern.backends.choice.topology_of`). On others
    than the CPU, checks wait for the device, once for contents that were not checked before; ``exchange`` and ``copy_``
    do not.
    """

    __slots__ = ("ccol_indices", "col_indices", "crow_indices", "permutation", "row_indices", "shape")

    shape: tuple[int, int]
    ccol_indices: Tensor
    row_indices: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    permutation: Tensor

    def __init__(self) -> None:
        raise TypeError("Pattern has no constructor: use Pattern.from_csc, from_csr, from_coo, from_mask or random")

    @classmethod
    def from_buffers(
        cls,
        shape: tuple[int, int],
        ccol_indices: Tensor,
        row_indices: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        permutation: Tensor,
    ) -> Pattern:
        """Wraps the five tensors as they are, without a check; ``ensure_valid`` checks them."""
        pattern = object.__new__(cls)
        pattern.shape = (int(shape[0]), int(shape[1]))
        pattern.ccol_indices = ccol_indices
        pattern.row_indices = row_indices
        pattern.crow_indices = crow_indices
        pattern.col_indices = col_indices
        pattern.permutation = permutation
        return pattern

    @classmethod
    def from_csc(cls, shape: tuple[int, int], ccol_indices: Tensor, row_indices: Tensor) -> Pattern:
        """From compressed columns: ``ccol_indices`` (cols + 1,) and ``row_indices`` (nnz,), int32 or int64.

        Raises:
            TypeError: an argument is not a tensor of int32 or int64.
            ValueError: the arrays do not describe a ``shape`` matrix; names the argument, position and value.
        """
        rows, cols = _checked_shape(shape)
        ccol, row = _compressed(("ccol_indices", ccol_indices, cols), ("row_indices", row_indices, rows))
        return cls.from_stored((rows, cols), ccol, row)._completed()

    @classmethod
    def from_csr(cls, shape: tuple[int, int], crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """From compressed rows: ``crow_indices`` (rows + 1,) and ``col_indices`` (nnz,), int32 or int64.

        Raises:
            TypeError: an argument is not a tensor of int32 or int64.
            ValueError: the arrays do not describe a ``shape`` matrix; names the argument, position and value.
        """
        rows, cols = _checked_shape(shape)
        crow, col = _compressed(("crow_indices", crow_indices, rows), ("col_indices", col_indices, cols))
        ccol, row, _ = topology_of(col.device).transpose(crow, col, cols)
        return cls.from_stored((rows, cols), ccol, row)._completed()

    @classmethod
    def from_coo(cls, shape: tuple[int, int], rows: Tensor, cols: Tensor) -> Pattern:
        """From edges in any order: ``rows`` and ``cols`` (nnz,), int32 or int64.

        Raises:
            TypeError: an argument is not a tensor of int32 or int64.
            ValueError: an edge is out of range or there twice; names the argument, position and value.
        """
        shape = _checked_shape(shape)
        keys = _sorted_keys(shape, ("rows", rows), ("cols", cols))
        return cls.from_sorted_keys(shape, keys)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Pattern:
        """From a dense ``(rows, cols)`` mask: an edge where it is true (or not zero)."""
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
        if mask.dim() != 2:
            raise ValueError(f"mask must have 2 dimensions (rows, cols), got shape {tuple(mask.shape)}")
        shape = _checked_shape((mask.shape[0], mask.shape[1]))
        keys = mask.t().reshape(-1).nonzero().view(-1)
        return cls.from_sorted_keys(shape, keys, distinct=True)

    @classmethod
    def random(cls, shape: tuple[int, int], nnz: int, generator: torch.Generator | None = None) -> Pattern:
        """Exactly ``nnz`` edges, every set of as many equally likely: the random graph G(n, M).

        Time and memory are O(rows + cols + nnz). The pattern is on the generator's device (None: torch's default
        CPU generator), and drawn there.
        """
        shape = _checked_shape(shape)
        _check_nnz(shape, nnz)
        topology = topology_of(torch.device("cpu") if generator is None else generator.device)
        return cls.from_sorted_keys(shape, topology.distinct_below(shape[0] * shape[1], nnz, generator), distinct=True)

    @classmethod
    def empty(cls, shape: tuple[int, int], nnz: int, device: torch.device | str | None = "meta") -> Pattern:
        """Tensors of the right shapes and dtypes without content, on the meta device by default."""
        rows, cols = _checked_shape(shape)
        _check_nnz((rows, cols), nnz)
        wide = pointer_dtype(nnz)
        sizes = (cols + 1, wide), (nnz, torch.int32), (rows + 1, wide), (nnz, torch.int32), (nnz, wide)
        tensors = [torch.empty(size, dtype=dtype, device=device) for size, dtype in sizes]
        return cls.from_buffers((rows, cols), *tensors)

    @classmethod
    def from_sorted_keys(cls, shape: tuple[int, int], keys: Tensor, *, distinct: bool = False) -> Self:
        """From edges as ascending keys ``col * rows + row``: (nnz,) int64, on the device that the pattern is for.

        Args:
            distinct: whether no key is known to be there twice; else that is checked.

        Raises:
            ValueError: a key is there twice. The order and range of the keys are the caller's to guarantee.
        """
        topology, dtype = topology_of(keys.device), pointer_dtype(keys.numel())
        if distinct:
            return cls.from_stored(shape, *topology.unpack_keys(keys, shape, dtype))._completed()
        ccol, row, repeated = topology.unpack_checked(keys, shape, dtype)
        if repeated >= 0:
            col_at, row_at = divmod(int(keys[repeated]), shape[0])
            raise ValueError(f"rows and cols name (row {row_at}, column {col_at}) twice: edges must be distinct")
        return cls.from_stored(shape, ccol, row)._completed()

    @classmethod
    def from_stored(cls, shape: tuple[int, int], ccol_indices: Tensor, row_indices: Tensor) -> Self:
        """Wraps a CSC pair that is known to be good, without a check.

        What is by row is derived when it is first asked for, which candidates of an update never are.
        """
        pattern = object.__new__(cls)
        pattern.shape = shape
        pattern.ccol_indices = ccol_indices
        pattern.row_indices = row_indices
        _checked_pairs.put(shape[0], ccol_indices, row_indices)
        return pattern

    def _completed(self) -> Self:
        # Now, not at the first use: that may be inside a transform or a trace, whose tensors have no memory.
        self.crow_indices  # noqa: B018
        return self

    def __getattr__(self, name: str) -> Tensor:
        # Reached where a slot is empty: the derived arrays of a pattern that was made from the stored ones.
        if name not in ("crow_indices", "col_indices", "permutation"):
            raise AttributeError(name)
        derived = topology_of(self.device).transpose(self.ccol_indices, self.row_indices, self.shape[0])
        self.crow_indices, self.col_indices, self.permutation = derived
        _checked_patterns.put(True, *self.tensors())
        return getattr(self, name)

    @property
    def nnz(self) -> int:
        """Number of edges."""
        return self.row_indices.numel()

    @property
    def density(self) -> float:
        """Edges over ``rows * cols``; 0 for an empty matrix."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def device(self) -> torch.device:
        return self.row_indices.device

    def tensors(self) -> Tensors:
        """``(ccol_indices, row_indices, crow_indices, col_indices, permutation)``."""
        return self.ccol_indices, self.row_indices, self.crow_indices, self.col_indices, self.permutation

    def validate(self) -> None:
        """Checks every invariant, in O(rows + cols + nnz). No check on the meta device.

        Raises:
            TypeError: a tensor has a wrong dtype.
            ValueError: names the tensor, the position and the value that is wrong.
        """
        rows, cols = self.shape
        sizes = ("ccol_indices", self.ccol_indices, cols), ("crow_indices", self.crow_indices, rows)
        for name, tensor, size in sizes:
            if tensor.numel() != size + 1:
                raise ValueError(f"{name} must have {size + 1} elements for {self.shape}, got {tensor.numel()}")
        _validate(self.tensors())

    def ensure_valid(self) -> None:
        """``validate``, at no cost when this very content has been validated before."""
        rows, cols = self.shape
        sizes_fit = self.ccol_indices.numel() == cols + 1 and self.crow_indices.numel() == rows + 1
        if not (sizes_fit and _checked_patterns.get(*self.tensors())):
            self.validate()

    def edges(self) -> tuple[Tensor, Tensor]:
        """``(rows, cols)`` of the edges in stored order, each (nnz,) int64."""
        # An edge's column is the number of columns that end at it or before. (repeat_interleave would do, but
        # wakes all of torch's threads however few the edges are.)
        ends = self.ccol_indices[1:-1].long()
        ended = torch.zeros(self.nnz + 1, dtype=torch.int64, device=self.device)
        ended.index_add_(0, ends, torch.ones_like(ends))
        return self.row_indices.long(), ended[:-1].cumsum(0)

    def fan_in(self) -> Tensor:
        """(rows,) int64: number of edges of each row."""
        return self.crow_indices.long().diff()

    def fan_out(self) -> Tensor:
        """(cols,) int64: number of edges of each column."""
        return self.ccol_indices.long().diff()

    def to(self, device: torch.device | str) -> Pattern:
        """The same pattern on another device; itself where it is there already."""
        if self.device == torch.device(device):
            return self
        return self._with(tuple(tensor.to(device) for tensor in self.tensors()))

    def clone(self) -> Pattern:
        """A copy with tensors of its own."""
        return self._with(tuple(tensor.clone() for tensor in self.tensors()))

    def _with(self, tensors: tuple[Tensor, ...]) -> Pattern:
        """The same content in other tensors, as well checked as this."""
        pattern = Pattern.from_buffers(self.shape, *tensors)
        if _checked_patterns.get(*self.tensors()):
            _remember_all(pattern.tensors())
        return pattern

    def equal(self, other: Pattern) -> bool:
        """Whether both have the same shape and the same edges."""
        return bool(self.same_edges(other))

    def same_edges(self, other: Pattern) -> Number:
        """:meth:`equal`, which a pattern on another device than the CPU need not know by now."""
        if self.shape != other.shape or self.nnz != other.nnz:
            return False
        pairs = ((pattern.ccol_indices, pattern.row_indices) for pattern in (self, other))
        same: Number = topology_of(self.device).same_edges(*pairs)
        return same

    @torch.no_grad()
    def copy_(self, other: Pattern, writes: Writes | None = None) -> None:
        """Writes another pattern's edges, of the same shape and number, into these tensors.

        Args:
            other: the pattern, with the edges that it has when they are written.
            writes: has them written later; None: now.
        """
        if other.shape != self.shape or other.nnz != self.nnz:
            raise ValueError(f"other is {other}; expected shape {self.shape} and nnz {self.nnz}")
        pending = Writes() if writes is None else writes
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            pending.put(mine, theirs)

        def remember() -> None:
            if _checked_patterns.get(*other.tensors()):
                _remember_all(self.tensors())

        pending.then(remember)
        if writes is None:
            pending.write()

    def to_mask(self) -> Tensor:
        """The DENSE (rows, cols) bool mask of the edges: rows * cols bytes."""
        rows, cols = self.edges()
        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.device)
        return flat.index_fill_(0, rows * self.shape[1] + cols, True).view(self.shape)

    def replace_edges(self, pruned: Tensor, grown_rows: Tensor, grown_cols: Tensor) -> Tensor:
        """Takes edges out and puts as many others in, in place. O(rows + cols + nnz).

        Args:
            pruned: (k,) int64 stored slots of the edges to take out, ascending and distinct.
            grown_rows, grown_cols: (k,) edges to put in, in any order, distinct and not in the pattern.

        Returns:
            source, (nnz,) int64: for each slot the slot that its edge had before, -1 where the edge is new.

        Raises:
            TypeError, ValueError: on anything else; the pattern is then as it was.
        """
        self.ensure_valid()
        topology = topology_of(self.device)
        slots = _integers("pruned", pruned).to(self.device).long().contiguous()
        keys = _sorted_keys(self.shape, ("grown_rows", grown_rows), ("grown_cols", grown_cols)).to(self.device)
        if slots.numel() != keys.numel():
            raise ValueError(f"as many edges must grow as are pruned, got {keys.numel()} and {slots.numel()}")
        if slots.numel() == 0:
            return torch.arange(self.nnz, device=self.device)
        if int(slots[0]) < 0 or int(slots[-1]) >= self.nnz or bool((slots.diff() <= 0).any()):
            raise ValueError(f"pruned must hold ascending, distinct slots in [0, {self.nnz})")
        repeated = (keys.diff() == 0).nonzero()
        if repeated.numel():
            col_at, row_at = divmod(int(keys[repeated[0]]), self.shape[0])
            raise ValueError(f"grown_rows and grown_cols name (row {row_at}, column {col_at}) twice")
        present = topology.first_present(self.ccol_indices, self.row_indices, self.shape, keys)
        if present >= 0:
            col_at, row_at = divmod(int(keys[present]), self.shape[0])
            raise ValueError(f"grown_rows and grown_cols name (row {row_at}, column {col_at}): it is an edge already")
        grown = Pattern.from_stored(self.shape, *topology.unpack_keys(keys, self.shape, self.ccol_indices.dtype))
        gone = topology.mark_positions(slots, self.nnz)
        every = topology.mark_positions(torch.arange(keys.numel(), device=self.device), keys.numel())
        source: Tensor = topology.sources(gone, self.exchange(gone, grown, every, keys.numel()), self.nnz)
        return source

    @torch.no_grad()
    def exchange(
        self, pruned: Tensor, candidates: Pattern, chosen: Tensor, count: Number, writes: Writes | None = None
    ) -> Tensor:
        """``replace_edges`` by the ``chosen`` of some candidates, without a check.

        Args:
            pruned: marks (of this device's topology: ``topology_of``) of the slots of ``count`` edges.
            candidates: edges of this shape, the chosen of them not in the pattern.
            chosen: marks of ``count`` slots of ``candidates``.
            count: how many edges go and come.
            writes: has the new edges written later, but for a pattern of the extension; None: now.

        Returns:
            Marks of the slots that the new edges have.
        """
        pending = Writes() if writes is None else writes
        stored = candidates.ccol_indices, candidates.row_indices
        grown: Tensor = topology_of(self.device).exchange(self.tensors(), pruned, stored, chosen, count, pending)
        pending.then(lambda: _remember_all(self.tensors()))
        if writes is None:
            pending.write()
        return grown

    def __repr__(self) -> str:
        return f"Pattern({self.shape}, nnz={self.nnz}, density={self.density:.4g}, device={self.device})"


def check_tensors(
    ccol_indices: Tensor, row_indices: Tensor, crow_indices: Tensor, col_indices: Tensor, permutation: Tensor
) -> None:
    """Checks the five tensors of a pattern unless this very content has been checked before.

    Raises:
        TypeError: a tensor has a wrong dtype.
        ValueError: names the tensor, the position and the value that is wrong.
    """
    tensors = (ccol_indices, row_indices, crow_indices, col_indices, permutation)
    if not _checked_patterns.get(*tensors):
        _validate(tensors)


def check_csc(ccol_indices: Tensor, row_indices: Tensor, n_rows: int) -> None:
    """Checks the stored pair of a pattern with ``n_rows`` rows unless it has been checked before.

    Raises:
        TypeError: a tensor has a wrong dtype.
        ValueError: names the tensor, the position and the value that is wrong.
    """
    tensors = (ccol_indices, row_indices)
    if _checked_pairs.get(*tensors) == n_rows:
        return
    _check_storage(tensors)
    if not row_indices.is_meta:
        _check_pair(("ccol_indices", ccol_indices), ("row_indices", row_indices), n_rows)
        _checked_pairs.put(n_rows, *tensors)


# What has been checked: whole patterns, and stored pairs with the number of rows that they were checked for.
_checked_patterns: Kept[bool] = Kept()
_checked_pairs: Kept[int] = Kept()


def _remember_all(tensors: Tensors) -> None:
    _checked_patterns.put(True, *tensors)
    _checked_pairs.put(tensors[2].numel() - 1, *tensors[:2])


def _validate(tensors: Tensors) -> None:
    ccol, row, crow, col, permutation = tensors
    _check_storage(tensors)
    if row.is_meta:
        return
    n_rows, n_cols, nnz = crow.numel() - 1, ccol.numel() - 1, row.numel()
    for name, tensor in (("col_indices", col), ("permutation", permutation)):
        if tensor.numel() != nnz:
            raise ValueError(f"{name} must have {nnz} elements like row_indices, got {tensor.numel()}")
    _check_pair(("ccol_indices", ccol), ("row_indices", row), n_rows)
    _check_pair(("crow_indices", crow), ("col_indices", col), n_cols)
    j = topology_of(row.device).check_transpose(tensors)
    if j >= 0:
        row_at = int(torch.searchsorted(crow, j, right=True)) - 1
        raise ValueError(
            f"permutation[{j}] = {int(permutation[j])}: it must be the stored edge of row {row_at}, column "
            f"{int(col[j])}, which is edge {j} by rows"
        )
    _remember_all(tensors)


def _check_storage(tensors: tuple[Tensor, ...]) -> None:
    """dtypes, dimensions, contiguity and devices of tensors that kernels will read as they are."""
    names = _NAMES[: len(tensors)]
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        wanted = (torch.int32,) if name in ("row_indices", "col_indices") else (torch.int32, torch.int64)
        if tensor.dtype not in wanted:
            raise TypeError(f"{name} must have dtype {' or '.join(map(str, wanted))}, got {tensor.dtype}")
        if tensor.dtype != tensors[0].dtype and len(wanted) == 2:
            raise TypeError(f"{name} must have ccol_indices' dtype {tensors[0].dtype}, got {tensor.dtype}")
        if tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous with 1 dimension, got shape {tuple(tensor.shape)}, stride {tensor.stride()}"
            )
        if tensor.device != tensors[0].device:
            raise ValueError(f"{name} must be on ccol_indices' device {tensors[0].device}, got {tensor.device}")
        if name in ("ccol_indices", "crow_indices") and tensor.numel() == 0:
            raise ValueError(f"{name} is empty: it must hold at least the 0 that it starts with")


def _check_pair(pointers: tuple[str, Tensor], indices: tuple[str, Tensor], n_minor: int) -> None:
    """Words what is found in a CSC (CSR) pair whose storage is good."""
    pointer_name, pointer = pointers
    index_name, index = indices
    fault, position = topology_of(index.device).check_compressed(pointer, index, n_minor)
    if fault:
        raise ValueError(_explain(fault, position, pointer_name, pointer, index_name, index, n_minor))


def _explain(
    fault: str,
    position: int,
    pointer_name: str,
    pointer: Tensor,
    index_name: str,
    index: Tensor,
    n_minor: int,
) -> str:
    if fault.startswith("pointer"):
        found = f"{pointer_name}[{position}] = {int(pointer[position])}"
        return {
            "pointer_start": f"{found}: it must start with 0",
            "pointer_order": f"{found} after {int(pointer[max(0, position - 1)])}: it must not decrease",
            "pointer_end": f"{found}: it must end with the length of {index_name}, {index.numel()}",
        }[fault]
    major = "column" if index_name == "row_indices" else "row"
    found = f"{index_name}[{position}] = {int(index[position])}"
    if fault == "range":
        return f"{found} is out of range: it must be in [0, {n_minor})"
    at = int(torch.searchsorted(pointer, position, right=True)) - 1
    if fault == "duplicate":
        return f"{found} is in {major} {at} twice: the indices of a {major} must be distinct"
    before = int(index[position - 1])
    return f"{found} after {before} in {major} {at}: the indices of a {major} must be ascending"


def _compressed(pointers: tuple[str, Tensor, int], indices: tuple[str, Tensor, int]) -> tuple[Tensor, Tensor]:
    """A user's CSC (CSR) pair, checked, on the indices' device, in the dtypes that a pattern stores."""
    pointer_name, pointer_given, n_major = pointers
    index_name, index_given, n_minor = indices
    index = _integers(index_name, index_given)
    pointer = _integers(pointer_name, pointer_given).to(index.device)
    if pointer.numel() != n_major + 1:
        raise ValueError(f"{pointer_name} must have {n_major + 1} elements, got {pointer.numel()}")
    nnz = index.numel()
    # Clamping keeps what is out of range out of range where it would not fit the narrower dtype.
    narrow_pointer = pointer.clamp(-1, nnz + 1).to(pointer_dtype(nnz + 1)).contiguous()
    narrow_index = index.clamp(-1, n_minor).to(torch.int32).contiguous()
    fault, position = topology_of(index.device).check_compressed(narrow_pointer, narrow_index, n_minor)
    if fault:
        raise ValueError(_explain(fault, position, pointer_name, pointer, index_name, index, n_minor))
    # Tensors of the pattern's own: it may be changed in place.
    return narrow_pointer.to(pointer_dtype(nnz)), narrow_index


def _sorted_keys(shape: tuple[int, int], rows: tuple[str, Tensor], cols: tuple[str, Tensor]) -> Tensor:
    """(n,) int64 keys ``col * n_rows + row`` of a user's edges, sorted, on the rows' device."""
    row_name, row_given = rows
    col_name, col_given = cols
    row = _integers(row_name, row_given).long().contiguous()
    col = _integers(col_name, col_given).to(row.device).long().contiguous()
    if row.numel() != col.numel():
        raise ValueError(f"{row_name} has {row.numel()} elements, {col_name} {col.numel()}: it must be as many")
    keys: Tensor
    keys, bad = topology_of(row.device).sorted_keys(row, col, shape)
    if bad >= 0:
        for name, values, size in ((row_name, row, shape[0]), (col_name, col, shape[1])):
            if not 0 <= int(values[bad]) < size:
                found = f"{name}[{bad}] = {int(values[bad])}"
                raise ValueError(f"{found} is out of range: it must be in [0, {size})")
    return keys


def _integers(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must have dtype torch.int32 or torch.int64, got {tensor.dtype}")
    if tensor.dim() != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(tensor.shape)}")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no content: use Pattern.empty")
    return tensor.detach()


def _checked_shape(shape: tuple[int, int]) -> tuple[int, int]:
    try:
        rows, cols = (int(size) for size in shape)
    except (TypeError, ValueError):
        raise TypeError(f"shape must be (rows, cols), got {shape!r}") from None
    for name, size in (("rows", rows), ("cols", cols)):
        if not 0 <= size <= _INT32_MAX:
            raise ValueError(f"shape has {size} {name}: it must be in [0, {_INT32_MAX}]")
    return rows, cols


def _check_nnz(shape: tuple[int, int], nnz: int) -> None:
    if not 0 <= nnz <= shape[0] * shape[1]:
        raise ValueError(f"nnz = {nnz} is out of range: it must be in [0, {shape[0] * shape[1]}] for {shape}")
