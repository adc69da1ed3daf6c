"""Topology by the C++ extension, on CPU tensors."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends._cpu_linear import DTYPE_CODES
from sparsekern.backends.topology.numbers import Number
from sparsekern.backends.topology.seed import draw_seed
from sparsekern.backends.topology.writes import Writes

_CHUNK = 1 << 18  # elements whose absolute values are held at a time

Arrays = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _is_wide(pointer: Tensor) -> bool:
    return pointer.dtype == torch.int64


# -- arrays


def check_compressed(pointers: Tensor, indices: Tensor, n_minor: int) -> tuple[str, int]:
    """What is wrong first with a CSC (CSR) pair of good storage, and at which position; "" where nothing is.

    Waits for the device. The faults: "pointer_start", "pointer_order" and "pointer_end" at a position of ``pointers``,
    "range", "order" and "duplicate" at one of ``indices``.
    """
    fault, position = _C.check_compressed(
        pointers.data_ptr(), indices.data_ptr(), pointers.numel() - 1, n_minor, indices.numel(), _is_wide(pointers)
    )
    return fault, position


def check_transpose(arrays: Arrays) -> int:
    """The first place by rows that names another edge than its own, -1 where none does; waits for the device.

    Args:
        arrays: of a pattern, whose two pairs have passed :func:`check_compressed`.
    """
    ccol, row, crow, _, _ = arrays
    fault, place = _C.check_transpose(
        *(array.data_ptr() for array in arrays), crow.numel() - 1, row.numel(), _is_wide(ccol)
    )
    return place if fault else -1


def transpose(pointer: Tensor, index: Tensor, n_minor: int) -> tuple[Tensor, Tensor, Tensor]:
    """(pointers, indices, permutation) of the transpose of a good CSC (or CSR) pair."""
    out = (
        torch.empty(n_minor + 1, dtype=pointer.dtype, device="cpu"),
        torch.empty_like(index),
        torch.empty(index.numel(), dtype=pointer.dtype, device="cpu"),
    )
    _transpose_into(pointer, index, n_minor, out)
    return out


def _transpose_into(pointer: Tensor, index: Tensor, n_minor: int, out: Sequence[Tensor]) -> None:
    _C.transpose(
        pointer.data_ptr(),
        index.data_ptr(),
        n_minor,
        pointer.numel() - 1,
        index.numel(),
        *(array.data_ptr() for array in out),
        _is_wide(pointer),
    )


def sorted_keys(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> tuple[Tensor, int]:
    """The keys ``col * n_rows + row``, (n,) int64, of int64 edges, sorted; waits for the device.

    Also the position of the first edge that is out of range, -1 where none is; the keys are then of no use.
    """
    keys = torch.empty_like(rows)
    bad = _C.pack_keys(rows.data_ptr(), cols.data_ptr(), rows.numel(), *shape, keys.data_ptr())
    if bad < 0:
        _C.sort_keys(keys.data_ptr(), keys.numel(), shape[0] * shape[1])
    return keys, bad


def unpack_keys(keys: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sorted, distinct keys as CSC: pointers of ``dtype`` and int32 rows."""
    return _unpacked(keys, shape, dtype)[:2]


def unpack_checked(keys: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """The same of keys that may repeat, and the first that repeats the one before, -1 where none does; waits."""
    return _unpacked(keys, shape, dtype)


def _unpacked(keys: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    ccol = torch.empty(shape[1] + 1, dtype=dtype, device="cpu")
    row = torch.empty(keys.numel(), dtype=torch.int32, device="cpu")
    repeated = _C.unpack_keys(keys.data_ptr(), keys.numel(), *shape, ccol.data_ptr(), row.data_ptr(), _is_wide(ccol))
    return ccol, row, repeated


def first_present(ccol: Tensor, row: Tensor, shape: tuple[int, int], keys: Tensor) -> int:
    """The place of the first of some sorted, distinct keys that is an edge of the CSC pair, or -1; waits."""
    grown_ccol, grown_row = unpack_keys(keys, shape, ccol.dtype)
    found: int = _C.first_present(
        ccol.data_ptr(), row.data_ptr(), shape[1], grown_ccol.data_ptr(), grown_row.data_ptr(), _is_wide(ccol)
    )
    return found


def same_edges(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Whether two CSC pairs of the same sizes are equal."""
    return all(torch.equal(mine, theirs.to(mine)) for mine, theirs in zip(one, other, strict=True))


# -- marks: a bit for each value, in int64 words of 64


def _new_marks(size: int) -> Tensor:
    return torch.empty((size + 63) // 64, dtype=torch.int64, device="cpu")


def mark_positions(positions: Tensor, size: int) -> Tensor:
    """Marks at distinct ``positions``, int64, each in [0, size)."""
    positions = positions.contiguous()
    marks = _new_marks(size)
    _C.mark_positions(positions.data_ptr(), positions.numel(), size, marks.data_ptr())
    return marks


def mark_by_magnitude(values: Tensor, count: Number, *, largest: bool) -> Tensor:
    """Marks of the ``count`` largest or smallest absolute values: see :mod:`sparsekern.growth.select`."""
    wide = values.dtype == torch.float64
    values = values.to(torch.float64 if wide else torch.float32).contiguous()
    marks = _new_marks(values.numel())
    _C.select_by_magnitude(values.data_ptr(), values.numel(), int(count), largest, marks.data_ptr(), wide)
    return marks


def select_by_magnitude(values: Tensor, count: int, *, largest: bool) -> Tensor:
    """The ``count`` positions that :func:`mark_by_magnitude` marks, int64, ascending."""
    marks = mark_by_magnitude(values, count, largest=largest)
    positions = torch.empty(count, dtype=torch.int64, device="cpu")
    _C.marked_positions(marks.data_ptr(), values.numel(), positions.data_ptr())
    return positions


def mark_candidates(row: Tensor, valid: Tensor | None, scores: Tensor | None, count: Number) -> Tensor:
    """Marks of the ``count`` candidates to grow: of the largest scores, the first ones where there are no scores.

    Args:
        row: (n,) rows of the candidates.
        valid: (n,) bool, those that are candidates at all; None where all are.
        scores: (n,) gradients, or None.
        count: at most as many as are valid.
    """
    if valid is not None:  # drawn by the reference
        scores = valid.float() if scores is None else scores.masked_fill(~valid, torch.nan)
    if scores is not None and count < row.numel():
        return mark_by_magnitude(scores, count, largest=True)
    return mark_positions(torch.arange(int(count), device="cpu"), row.numel())


def all_finite(values: Tensor, valid: Tensor | None = None) -> bool:
    """Whether ``values``, of any floating dtype, hold neither infinities nor NaNs where ``valid`` (None: anywhere)."""
    if valid is not None:
        values = values.masked_fill(~valid, 0)
    if values.dtype not in (torch.float32, torch.float64) or not values.is_contiguous():
        return bool(values.isfinite().all())
    return bool(_C.all_finite(values.data_ptr(), values.numel(), values.dtype == torch.float64))


# -- changes


def exchange(
    arrays: Arrays,
    pruned: Tensor,
    candidates: tuple[Tensor, Tensor],
    chosen: Tensor,
    count: Number,
    writes: Writes,
) -> Tensor:
    """Takes edges out of a pattern and puts as many others in; the new arrays are left to ``writes``, or written.

    Args:
        arrays: the pattern's.
        pruned: marks of the slots of ``count`` edges.
        candidates: CSC pair of edges, of which the chosen are not in the pattern.
        chosen: marks of ``count`` slots of the candidates.
        count: how many edges go and come.

    Returns:
        Marks of the slots that the new edges will have.
    """
    ccol, row, crow, col, permutation = arrays
    candidate_ccol, candidate_row = candidates[0].to(ccol.dtype), candidates[1]
    new_ccol = torch.empty_like(ccol)
    grown = _new_marks(row.numel())
    _C.replace_edges(
        ccol.data_ptr(),
        row.data_ptr(),
        ccol.numel() - 1,
        pruned.data_ptr(),
        candidate_ccol.data_ptr(),
        candidate_row.data_ptr(),
        chosen.data_ptr(),
        int(count),
        new_ccol.data_ptr(),
        grown.data_ptr(),
        _is_wide(ccol),
    )
    ccol.copy_(new_ccol)
    derived = (crow, col, permutation)
    _transpose_into(new_ccol, row, crow.numel() - 1, derived)
    torch.autograd.graph.increment_version((row, *derived))
    return grown


def sources(pruned: Tensor, grown: Tensor, size: int) -> Tensor:
    """(size,) int64: the slot that each slot's edge had before an exchange, -1 for a new edge; from its marks."""
    slots = torch.arange(1, size + 1, dtype=torch.int64, device="cpu")
    _C.move_values(pruned.data_ptr(), grown.data_ptr(), size, slots.data_ptr(), slots.itemsize)
    return slots.sub_(1)


def move_values(pruned: Tensor, grown: Tensor, values: Tensor, writes: Writes) -> None:
    """Moves ``values`` (nnz,), on any device, with their edges; new ones get 0. Left to ``writes``, or written."""
    if values.device.type == "cpu" and values.is_contiguous() and values.itemsize in (2, 4, 8):
        _C.move_values(pruned.data_ptr(), grown.data_ptr(), values.numel(), values.data_ptr(), values.itemsize)
        torch.autograd.graph.increment_version(values)
    else:
        source = sources(pruned, grown, values.numel()).to(values.device)
        values.copy_(values.detach().index_select(0, source.clamp(min=0)).masked_fill_(source < 0, 0))


# -- draws


def distinct_below(bound: int, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` distinct keys below ``bound``, (count,) int64, sorted; all sets of them alike likely."""
    seed = draw_seed(generator)
    keys = torch.empty(count, dtype=torch.int64, device="cpu")
    _C.distinct_below(seed, bound, count, keys.data_ptr())
    return keys


def draw_uniform(
    ccol: Tensor, row: Tensor, shape: tuple[int, int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """CSC pair of ``count`` distinct places of the matrix that are not edges, all sets of them alike likely.

    Args:
        ccol, row: the edges; the dtype of ``ccol`` holds ``count`` too.
        count: at most as many as there are.
    """
    new_ccol, new_row, _ = _draw(ccol, row, shape, count, generator)
    return new_ccol, new_row


def draw_weighted(
    ccol: Tensor,
    row: Tensor,
    shape: tuple[int, int],
    row_weights: Tensor,
    col_weights: Tensor,
    epsilon: float,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | bool]:
    """The same by weight: see :func:`sparsekern.growth.samplers.sample_weighted`.

    Args:
        row_weights: (rows,); ``col_weights``: (groups, cols).
        epsilon: added to all weights, in units of their mean.
        count: fewer than there are.

    Returns:
        The CSC pair, which of its places were drawn, (n,) bool (None: all), and whether the weights were finite.

    Raises:
        FloatingPointError: where a weight is not finite, if that is known by now.
    """
    # Copies: they are changed in place.
    rows, cols = (weights.to(torch.float64, copy=True).contiguous() for weights in (row_weights, col_weights))
    new_ccol, new_row, found = _draw(ccol, row, shape, count, generator, rows, cols, epsilon)
    if found < 0:
        raise FloatingPointError("its activations or gradients hold values that are not finite")
    return new_ccol, new_row[:found], None, True


def _draw(
    ccol: Tensor,
    row: Tensor,
    shape: tuple[int, int],
    count: int,
    generator: torch.Generator,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor, int]:
    new_ccol, new_row = torch.empty_like(ccol), torch.empty(count, dtype=torch.int32, device="cpu")
    found = _C.draw_candidates(
        draw_seed(generator),
        ccol.data_ptr(),
        row.data_ptr(),
        *shape,
        1 if col_weights is None else col_weights.shape[0],
        0 if row_weights is None else row_weights.data_ptr(),
        0 if col_weights is None else col_weights.data_ptr(),
        epsilon,
        count,
        new_ccol.data_ptr(),
        new_row.data_ptr(),
        ccol.dtype == torch.int64,
    )
    return new_ccol, new_row, found


def signs(size: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    """int8, each -1 or 1."""
    return torch.randint(2, size, generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)


# -- sums over a batch


def sum_magnitudes(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum of abs(x) over ``dims``, the first among them, in at least float32; holds no abs(x), which is as large."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.dtype == dtype:
        x = x.contiguous()
        sums = torch.empty(x.shape[1:], dtype=torch.float64, device="cpu")
        _C.sum_magnitudes(
            x.data_ptr(), x.shape[0], sums.numel(), sums.numel(), sums.data_ptr(), x.dtype == torch.float64
        )
        return (sums.sum([dim - 1 for dim in dims[1:]]) if dims[1:] else sums).to(dtype)
    items = max(1, _CHUNK // max(1, prod(x.shape[1:])))
    parts = x.split(items)
    total = parts[0].abs().sum(dims, dtype=dtype)
    for part in parts[1:]:
        total += part.abs().sum(dims, dtype=dtype)
    return total


def window_sums(
    plane: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> Tensor:
    """What each position of a kernel sees of a plane (C, H, W), added up over all outputs: (C * kh * kw,)."""
    planes = plane.double().contiguous()
    sums = torch.empty(plane.shape[0] * prod(kernel_size), dtype=torch.float64, device="cpu")
    geometry = tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation)
    _C.sum_windows(
        planes.data_ptr(), plane.shape[0], *geometry, tuple(plane.shape[1:]), tuple(out_size), sums.data_ptr()
    )
    return sums.to(plane.dtype)


def signed_sums(
    x: Tensor,
    signs: Tensor,
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """The same of images x (N, C, H, W), under int8 signs (N, 1, OH, OW) of the outputs, added up over the images."""
    x = x.contiguous()
    sums = torch.empty(x.shape[1] * prod(kernel_size), dtype=torch.float64, device="cpu")
    _C.signed_sums(
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        *x.shape[:2],
        tuple(kernel_size),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        tuple(x.shape[2:]),
        tuple(signs.shape[2:]),
        signs.data_ptr(),
        sums.data_ptr(),
    )
    return sums.to(torch.promote_types(x.dtype, torch.float32))
