"""Images as the conv2d kernels read them: adjacent images, or adjacent pixels of a line.

A kernel works on tiles of two dimensions, ``low`` and ``inner``, of which inner is adjacent in memory, at one place of
a third, ``high``. Images by pixel, (C, H, W, N): rows, columns, images; what an edge reads begins at a multiple of 16
bytes whatever its shift, and is inside of the image or not as a whole. Images as planes, (N, C, H, W): images, rows,
columns.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sparsekern.backends.triton.layout import ALIGNMENT, by_feature, padded, power_of_two

# From so many images on, an edge reads at least a sector of the cache in images by pixel.
_IMAGES = 16
_WIDTH = 64


class Geometry(NamedTuple):
    """A convolution, as the operators are given it."""

    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def pointwise(self) -> bool:
        """Whether output pixels are made of input pixels at the same place aligned."""
        return self.taps == 1 and max(self.stride) == 1 and max(self.padding) == 0

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the outputs of images of a size."""
        sides = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * pad - dil * (k - 1) - 1) // step + 1 for n, k, step, pad, dil in sides)
        return height, width


def width_of_tiles(inner: int, most: int) -> int:
    """The widest power of two, 8 to ``most``, in whose multiples ``inner`` fills 7/8; where none does, fills most."""
    widths = [8]
    while widths[-1] < most:
        widths.append(2 * widths[-1])
    return min(reversed(widths), key=lambda width: max(7 * (-(-inner // width) * width), 8 * inner))


def tile(low: int, inner: int, elements: int) -> tuple[int, int]:
    """(low, inner), powers of two, of a tile of up to so many elements."""
    width = width_of_tiles(inner, elements)
    return min(power_of_two(low), elements // width), width


def _used(low: int, inner: int) -> float:
    """The share of tiles that extents fill."""
    lows, inners = tile(low, inner, _WIDTH)
    lines = -(-low // lows) * max(lows, _WIDTH // inners)
    return low * inner / (lines * -(-inner // inners) * inners)


def pixels_apart(batch: int, output_size: Sequence[int]) -> bool:
    """Whether a convolution is computed on images by pixel: many images, or ones too small to fill tiles of planes.

    A few large images are not padded to 16.
    """
    return batch >= _IMAGES or batch / max(1, padded(batch)) >= _used(*output_size)


class Images(NamedTuple):
    """Activations where a kernel finds them: strides in elements along images, channels, rows and columns."""

    data: Tensor
    batch: int  # images, with those that round up what is by pixel
    strides: tuple[int, int, int, int]
    by_pixel: bool

    @classmethod
    def of(cls, x: Tensor, by_pixel: bool) -> "Images":
        """Of x (N, C, H, W), of any strides; a copy where it does not lie so."""
        if by_pixel:
            return cls.of_data(by_feature(x), by_pixel)
        return cls.of_data(x if x.stride(3) == 1 else x.contiguous(), by_pixel)

    @classmethod
    def of_data(cls, data: Tensor, by_pixel: bool) -> "Images":
        """Of what lies so: (C, H, W, N) by pixel, else (N, C, H, W)."""
        batch, channels, rows, columns = data.movedim(-1, 0).stride() if by_pixel else data.stride()
        return cls(data, data.shape[-1 if by_pixel else 0], (batch, channels, rows, columns), by_pixel)

    def wide(self, geometry: Geometry) -> bool:
        """Whether an edge reads 16 bytes at a time."""
        aligned = all(stride == 1 or stride % ALIGNMENT == 0 for stride in self.strides)
        return self.by_pixel or (geometry.pointwise and aligned and self.data.data_ptr() % ALIGNMENT == 0)

    @property
    def channels(self) -> int:
        return self.data.shape[0 if self.by_pixel else 1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.data.shape[1:3] if self.by_pixel else self.data.shape[2:]
        return height, width
