"""How an axis of images is cut into tiles, so that every edge of a convolution is a constant shift within one.

Output y of an axis meets, at tap k, the input at ``y * stride + k * dilation - padding``. Its residue modulo the
stride and what is left of it after division are the tap's class and shift; the taps' residues repeat after ``period``
taps. The input gradient goes the other way: an input is the class of outputs that its residue makes it, and meets only
the taps of that residue, ``k * dilation // stride`` steps further back.

A tile is a window that reaches over all shifts, or has a class of its own for each tap, which needs no shift: more
copies, of which none is larger than the tile's outputs.
"""

from math import gcd
from typing import NamedTuple, TypeVar

from torch import Tensor

_NO_MODULUS = 2**31 - 1
Number = TypeVar("Number", int, Tensor)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Axis(NamedTuple):
    """An axis of a tile, in the order of ``TileAxis`` in csrc/cuda/tiles.h, which says what the numbers mean."""

    size: int
    step: int
    start: int
    classes: int
    class_step: int
    class_modulus: int
    back_step: int
    back_divisor: int
    tile: int
    extent: int
    tiles: int
    out_classes: int
    out_size: int
    out_step: int
    out_start: int
    out_class_step: int
    out_class_modulus: int


class AxisShape(NamedTuple):
    """A convolution along one axis, or its input gradient (``back``)."""

    size: int
    out_size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    back: bool = False

    @property
    def period(self) -> int:
        return self.stride // gcd(self.stride, self.dilation)

    @property
    def out_classes(self) -> int:
        return min(self.kernel, self.period) if self.back else 1

    @property
    def covers(self) -> bool:
        """Whether every output belongs to a class; those of no class meet no tap."""
        return not self.back or self.out_classes == self.stride

    @property
    def _first(self) -> int:
        return self.padding // self.stride

    @property
    def places(self) -> int:
        """Outputs of a class, at most."""
        if not self.back:
            return self.out_size
        return (self.size - 1 + self.padding) // self.stride - self._first + 1

    def _reach(self) -> int:
        return (self.kernel - 1) * self.dilation // self.stride

    def _classes(self, by_tap: bool) -> int:
        if self.back:
            return ceil_div(self.kernel, self.period) if by_tap else 1
        return self.kernel if by_tap else min(self.kernel, self.period)

    def by_tap(self, tile: int) -> bool:
        """Whether a class for each tap takes less room than a window, for so many outputs."""
        return self._classes(True) * tile < self._classes(False) * (tile + self._reach())

    def tap(self, tap: Number, by_tap: bool) -> tuple[Number, Number, Number]:
        """A tap's output class, class and shift."""
        shift = tap * self.dilation // self.stride
        none = tap * 0
        if not self.back:
            return (none, tap, none) if by_tap else (none, tap % self.period, shift)
        if by_tap:
            return tap % self.period, tap // self.period, none
        return tap % self.period, none, self._reach() - shift

    def axis(self, tile: int, by_tap: bool, run: int = 1) -> Axis:
        """The axis cut into tiles of ``tile`` places, each of which is ``run`` adjacent outputs."""
        assert run == 1 or by_tap
        extent = tile if by_tap else tile + self._reach()
        tiles = ceil_div(ceil_div(self.places, run), tile)
        classes = self._classes(by_tap)
        if not self.back:
            modulus = _NO_MODULUS if by_tap else self.stride
            source = (self.stride, -self.padding, classes, self.dilation, modulus, 0, 1)
            out = (1, self.out_size, 1, 0, 0, 1)
            return Axis(self.size, *source, tile, extent, tiles, *out)
        first = self._first
        if by_tap:
            between = self.dilation // gcd(self.stride, self.dilation)
            source = (1, first, classes, -between, _NO_MODULUS, self.dilation, self.stride)
        else:
            source = (1, first - self._reach(), classes, 0, 1, 0, 1)
        start = first * self.stride - self.padding
        out = (self.out_classes, self.size, self.stride, start, self.dilation, self.stride)
        return Axis(self.out_size, *source, tile, extent, tiles, *out)
