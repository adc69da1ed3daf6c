"""float32 sums over the edges of each row, by csrc/cuda/gather.h: the forward product and the input gradient."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backends.cuda.axes import ceil_div
from sparsekern.backends.cuda.extension import kernels
from sparsekern.backends.cuda.lists import deal, most_groups
from sparsekern.backends.cuda.plans import edges_of, kept_layout
from sparsekern.backends.cuda.tiles import CELL_BYTES, Shape, Source, Tile, best_tile, queue_of

_ELEMENTS = 4  # of a cell
_LIST_EDGES = 8  # that a list should have, or the lists' ends cost as much as the edges
# Products that a processor forms, and elements that it copies from the L2 cache, in the same time.
_PRODUCTS_PER_COPY = 3.7


@dataclass(frozen=True)
class GatherPlan:
    """How blocks share a product, as ``Gather`` in csrc/cuda/gather.h has it."""

    shape: Shape
    back: bool
    tile: Tile
    rows: int
    groups: int
    group_channels: int
    block_rows: int
    chunk_planes: int
    chunks: int
    token_warps: int
    warps: int
    lanes: int

    @property
    def row_blocks(self) -> int:
        return ceil_div(self.rows, self.block_rows)

    @property
    def lists(self) -> int:
        return self.tile.out_classes * self.row_blocks * self.chunks * self.block_rows

    @property
    def blocks(self) -> int:
        return self.tile.count * self.tile.out_classes * self.row_blocks

    def first_channel(self, row: Tensor) -> Tensor:
        """The first channel that the blocks of these rows hold, counted from the first of the rows' own groups."""
        group_rows = self.rows // self.groups
        first_group = torch.div(row, self.block_rows, rounding_mode="floor") * self.block_rows // group_rows
        return (first_group - row // group_rows) * self.group_channels


class GatherLayout(NamedTuple):
    ranges: Tensor  # (lists + 1, 2) int32: the first edge of each list and its end
    cells: Tensor  # (room,) int32
    sources: Tensor  # (room,) int32


def spanned_groups(rows: int, groups: int, block_rows: int) -> int:
    """Groups that the rows of a block belong to, at most."""
    return min(groups, (block_rows - 2) // (rows // groups) + 2) if rows else groups


def _warps_by_rows(needed: int, most: int) -> int:
    """Warps side by side in rows, such that few are idle in the last block."""
    return min(range(1, most + 1), key=lambda warps: (ceil_div(needed, warps) * warps, -warps))


@cache
def plan_gather(shape: Shape, back: bool, nnz: int, shared_bytes: int, processors: int) -> GatherPlan | None:
    """The plan for a product of this shape on a GPU with so much shared memory a block, and so many processors.

    None where no tile fits into shared memory: kernels of many hundred taps.
    """
    rows, sources = shape.out_channels, shape.channels
    if back:
        rows, sources = sources, rows
    rows = max(rows, 1)
    group_channels = sources // shape.groups
    density = nnz / max(1, rows * group_channels * shape.taps)
    y, x = shape.axis(0, back), shape.axis(1, back)
    tokens = shape.batch * y.places * x.places

    def plan(lanes: int, row_warps: int, token_warps: int) -> GatherPlan | None:
        block_rows = row_warps * (32 // lanes) * kernels().LANE_ROWS
        most_tokens = token_warps * lanes * _ELEMENTS
        used_rows = min(rows, block_rows)
        reuse = used_rows * density * shape.taps / (y.out_classes * x.out_classes) / _PRODUCTS_PER_COPY
        tile = best_tile(shape, back, most_tokens, _ELEMENTS, reuse)
        fixed = tile.table_bytes + CELL_BYTES * token_warps * lanes
        planes = spanned_groups(rows, shape.groups, block_rows) * group_channels * tile.classes
        # Two blocks a processor, if that leaves them room.
        for limit in (shared_bytes // 2 - 1024, shared_bytes):
            fitting = (limit - fixed) // tile.plane_bytes
            if fitting > 0:
                chunks = max(1, ceil_div(planes, fitting))
                chunk_planes = max(1, ceil_div(planes, chunks))
                return GatherPlan(
                    shape, back, tile, rows, shape.groups, group_channels, block_rows, chunk_planes, chunks,
                    token_warps, row_warps * token_warps, lanes,
                )  # fmt: skip
        return None

    for lanes in (32, 16, 8):
        row_warps = _warps_by_rows(ceil_div(rows, 32 // lanes * kernels().LANE_ROWS), kernels().GATHER_WARPS)
        token_warps = kernels().GATHER_WARPS // row_warps
        token_warps = min(token_warps, max(1, ceil_div(tokens, lanes * _ELEMENTS)))
        found = plan(lanes, row_warps, token_warps)
        # Smaller where tiles do not fit, and where processors would be idle.
        while token_warps > 1 and (found is None or found.blocks < 2 * processors):
            token_warps = ceil_div(token_warps, 2)
            found = plan(lanes, row_warps, token_warps) or found
        while row_warps > (1 if found is None else 4) and (found is None or found.blocks < 2 * processors):
            row_warps = ceil_div(row_warps, 2)
            found = plan(lanes, row_warps, token_warps) or found
        if lanes == 8 or (found is not None and tokens > 2 * lanes and _enough_edges(found, nnz)):
            return found
    return None


def _enough_edges(plan: GatherPlan, nnz: int) -> bool:
    return nnz >= _LIST_EDGES * plan.rows * plan.chunks * plan.tile.out_classes


def _layout(plan: GatherPlan, ccol: Tensor, row: Tensor) -> GatherLayout:
    edges = edges_of(plan.shape, ccol, row, plan.back)
    out_class, plane, cell = plan.tile.locate(edges)
    plane = plane - plan.first_channel(edges.row) * plan.tile.classes
    chunk = plane // plan.chunk_planes
    cell = cell + plane % plan.chunk_planes * plan.tile.pitches[3]
    block = edges.row // plan.block_rows
    keys = (out_class * plan.row_blocks + block) * plan.chunks + chunk
    lists = deal(keys * plan.block_rows + edges.row % plan.block_rows, plan.lists, 2)
    room = 2 * most_groups(row.numel(), plan.lists, 2)
    begins = lists.begins * 2
    ends = torch.cat([begins[:-1] + lists.sizes, begins[-1:]])
    ranges = torch.stack([begins, ends], 1).int()
    return GatherLayout(ranges, lists.place(cell, room, 0, torch.int32), lists.sources(room))


def gather(
    plan: GatherPlan,
    source: Source,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    out: Tensor,
    strides: tuple[int, int, int, int],
) -> None:
    """Writes a product's results to ``out``, whose strides are those of row, y, x and image, in elements."""
    layout: GatherLayout = kept_layout(ccol, row, plan, lambda: _layout(plan, ccol, row))
    queue, room = queue_of(out), layout.cells.numel()
    edges = torch.empty(room, 2, dtype=torch.float32, device=out.device)
    kernels().pack_edges(
        queue, room, layout.cells.data_ptr(), layout.sources.data_ptr(), w.data_ptr(), edges.data_ptr()
    )
    kernels().gather(
        queue,
        _argument(plan, source.strides, strides),
        source.address,
        layout.ranges.data_ptr(),
        edges.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )


def _argument(plan: GatherPlan, source: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    numbers = (
        plan.rows, plan.groups, plan.group_channels, plan.block_rows, plan.chunk_planes, plan.chunks,
        plan.token_warps, plan.warps, plan.lanes,
    )  # fmt: skip
    return kernels().Gather(plan.tile.kernel_argument(), numbers, source, strides)
