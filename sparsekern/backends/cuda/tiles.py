"""The choice of a tile: which tokens, images times places, a block works on, and how they lie in shared memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backends.cuda.axes import Axis, AxisShape, ceil_div
from sparsekern.backends.cuda.extension import kernels, queue_of

CELL_BYTES = 16

# Activations of fewer images than this lie as they are, tokens being adjacent places of one image, where that fills
# cells better.
_IMAGES = 8
# Images of one place that a tile has where the batch has as many.
_INNER_IMAGES = 16


class Shape(NamedTuple):
    """A convolution. A linear layer is the one of an image of one pixel."""

    batch: int
    channels: int
    size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def axis(self, axis: int, back: bool) -> AxisShape:
        return AxisShape(
            self.size[axis],
            self.out_size[axis],
            self.kernel[axis],
            self.stride[axis],
            self.padding[axis],
            self.dilation[axis],
            back,
        )


class Edges(NamedTuple):
    """Where the edges of a matrix lead: the sparse rows that are summed over and the channels that are gathered."""

    row: Tensor
    channel: Tensor  # counted from the first of the row's group
    tap: Tensor


@dataclass(frozen=True)
class Tile:
    """One tile's tokens, as ``Tiles`` in csrc/cuda/tiles.h has them."""

    y_shape: AxisShape
    x_shape: AxisShape
    y: Axis
    x: Axis
    y_by_tap: bool
    x_by_tap: bool
    batch: int
    inner_cells: int
    image_tiles: int
    by_pixel: bool
    pitches: tuple[int, int, int, int]  # from place to place in y and x, cell to cell of one, plane to plane; in cells
    elements: int  # of a cell

    @property
    def classes(self) -> int:
        return self.y.classes * self.x.classes

    @property
    def out_classes(self) -> int:
        return self.y.out_classes * self.x.out_classes

    @property
    def plane_cells(self) -> int:
        return self.y.extent * self.x.extent * self.inner_cells

    @property
    def token_cells(self) -> int:
        return self.y.tile * self.x.tile * self.inner_cells

    @property
    def plane_bytes(self) -> int:
        return self.pitches[3] * CELL_BYTES

    @property
    def table_bytes(self) -> int:
        return ceil_div(8 * self.classes * self.plane_cells, 128) * 128

    @property
    def count(self) -> int:
        return self.image_tiles * self.y.tiles * self.x.tiles

    def kernel_argument(self) -> Any:
        places = self.y, self.x, self.batch, self.inner_cells, self.image_tiles, self.by_pixel
        return kernels().Tiles(*places, self.pitches)

    def of_outputs(self) -> "Tile":
        """The tile of the outputs' own gradient: the same tokens, a plane a row."""
        shapes = self.y_shape, self.x_shape
        y, x = (AxisShape(shape.out_size, shape.out_size, 1, 1, 0, 1) for shape in shapes)
        run = self.inner_cells * self.elements if self.by_pixel else 1
        y_axis, x_axis = y.axis(self.y.tile, True), x.axis(self.x.tile, True, run)
        pitches = self.x.tile * self.inner_cells, self.inner_cells, 1, self.token_cells
        rest = self.batch, self.inner_cells, self.image_tiles, self.by_pixel
        return Tile(y, x, y_axis, x_axis, True, True, *rest, pitches, self.elements)

    def locate(self, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        """Each edge's output class, plane (counted from its group's first) and cell within the plane."""
        taps_x = self.x_shape.kernel
        y_out, y_class, y_shift = self.y_shape.tap(edges.tap // taps_x, self.y_by_tap)
        x_out, x_class, x_shift = self.x_shape.tap(edges.tap % taps_x, self.x_by_tap)
        plane = (edges.channel * self.y.classes + y_class) * self.x.classes + x_class
        cell = y_shift * self.pitches[0] + x_shift * self.pitches[1]
        return y_out * self.x.out_classes + x_out, plane, cell


def _tiles_of(shape: Shape, back: bool, tokens: int, elements: int, inner_outermost: bool) -> Iterator[Tile]:
    y, x = shape.axis(0, back), shape.axis(1, back)
    inner = elements
    while inner < min(shape.batch, max(_INNER_IMAGES, tokens // (y.places * x.places)), tokens):
        inner *= 2
    images_filled = shape.batch / (ceil_div(shape.batch, inner) * inner)
    pixels_filled = x.places / (ceil_div(x.places, elements) * elements)
    by_pixel = shape.batch < _IMAGES and pixels_filled > images_filled
    run = elements if by_pixel else 1
    inner = run if by_pixel else inner
    cells = inner // elements
    width = ceil_div(x.places, run)
    places = max(1, tokens // inner)
    for tile_y in range(1, min(places, y.places) + 1):
        tile_x = min(places // tile_y, width)
        y_by_tap, x_by_tap = y.by_tap(tile_y), by_pixel or x.by_tap(tile_x)
        y_axis, x_axis = y.axis(tile_y, y_by_tap), x.axis(tile_x, x_by_tap, run)
        room = y_axis.extent * x_axis.extent
        if inner_outermost:
            # An odd pitch: planes that differ by less than 8 lie in different banks.
            pitches = x_axis.extent, 1, room, room * cells | 1
        else:
            pitches = x_axis.extent * cells, cells, 1, room * cells
        image_tiles = shape.batch if by_pixel else ceil_div(shape.batch, inner)
        yield Tile(
            y, x, y_axis, x_axis, y_by_tap, x_by_tap, shape.batch, cells, image_tiles, by_pixel, pitches, elements
        )


def best_tile(
    shape: Shape, back: bool, tokens: int, elements: int, reuse: float, inner_outermost: bool = False
) -> Tile:
    """The tile of at most ``tokens`` tokens that costs least.

    Args:
        elements: of a cell.
        reuse: products of an activation in shared memory that take as long as to copy it there.
        inner_outermost: a plane has all its places for some images and then for the next, or else for each place its
            images. ldmatrix wants the first: edges lie in different banks then, whatever the images.
    """

    def cost(tile: Tile) -> float:
        copied = tile.classes * tile.plane_cells
        return tile.count * (tokens / elements + copied / max(reuse, 1e-6))

    return min(_tiles_of(shape, back, tokens, elements, inner_outermost), key=cost)


class Source(NamedTuple):
    """Activations as the kernels read them; ``tensor`` keeps the memory."""

    tensor: Tensor
    strides: tuple[int, int, int, int, int]  # of channel, y, x and image, and the images that there is memory of

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def fits(self, size: Sequence[int]) -> bool:
        """Whether a kernel's 32 bits can number the elements of one channel, of images of this size."""
        _, y, x, image, images = self.strides
        return (size[0] - 1) * y + (size[1] - 1) * x + (images - 1) * image < 2**31


def images_innermost(x: Tensor) -> Source:
    """x (N, C, H, W) with adjacent images, padded by zeros to 16 bytes: a copy of the activations' size.

    The order of the other dimensions stays, so that a channels_last tensor is copied as straight as a contiguous one.
    """
    batch = x.shape[0]
    room = ceil_div(batch, 8) * 8
    order = sorted((1, 2, 3), key=lambda dim: x.stride(dim), reverse=True)
    if not x.permute(0, *order)[:1].is_contiguous() or (batch > 1 and x.stride(0) < x[:1].numel()):
        x, order = x.contiguous(), [1, 2, 3]
    features = x[:1].numel()
    by_image = torch.empty(features, room, dtype=x.dtype, device=x.device)
    if by_image.numel():
        stride = x.stride(0) if batch > 1 else features
        source = x.data_ptr(), batch, features, stride
        kernels().transpose(queue_of(x), *source, by_image.data_ptr(), room, x.element_size())
    strides = {}
    step = room
    for dim in reversed(order):
        strides[dim] = step
        step *= x.shape[dim]
    return Source(by_image, (strides[1], strides[2], strides[3], 1, room))


def as_it_lies(x: Tensor) -> Source:
    """x (N, C, H, W) without a copy."""
    return Source(x, (x.stride(1), x.stride(2), x.stride(3), x.stride(0), x.shape[0]))
