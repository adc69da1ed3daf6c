"""Run by test_triton.py beside running_triton.py: the conv2d kernels against their twins."""

import pytest
import torch
from gpu_backend import DEVICE, FLOATS, assert_close, assert_equal_their_twins, backend, random_mask

from sparsekern import Pattern
from sparsekern.backends import reference
from sparsekern.backends.triton.conv2d_edges import by_channel
from sparsekern.backends.triton.images import Geometry, Images, pixels_apart, tile, width_of_tiles

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Images (N, C, H, W), output channels, and kernel, stride, padding, dilation, groups.
GEOMETRIES = {
    "planes": ((2, 2, 4, 6), 3, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    "planes, one image": ((1, 2, 5, 9), 2, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    "planes, wide": ((1, 2, 2, 70), 2, ((1, 3), (1, 1), (0, 1), (1, 1), 1)),
    "planes, stride": ((2, 2, 5, 6), 3, ((3, 2), (2, 2), (1, 0), (1, 1), 1)),
    "planes, groups": ((2, 4, 3, 6), 4, ((2, 2), (1, 2), (1, 1), (1, 1), 2)),
    "planes, dilation meets stride": ((2, 2, 7, 8), 2, ((3, 3), (2, 3), (2, 2), (2, 2), 1)),
    "planes, pointwise": ((3, 3, 5, 7), 4, ((1, 1), (1, 1), (0, 0), (1, 1), 1)),
    "planes, pointwise in groups": ((2, 4, 4, 8), 6, ((1, 1), (1, 1), (0, 0), (1, 1), 2)),
    "by pixel": ((17, 2, 3, 3), 3, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    "by pixel, one pixel": ((5, 4, 1, 1), 3, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    "by pixel, stride": ((16, 2, 5, 4), 3, ((3, 3), (2, 2), (1, 1), (1, 1), 1)),
    "by pixel, depthwise": ((19, 3, 2, 3), 6, ((3, 2), (1, 1), (1, 0), (1, 1), 3)),
    "by pixel, dilation": ((18, 2, 4, 3), 2, ((2, 3), (1, 1), (1, 1), (2, 2), 1)),
    "by pixel, pointwise": ((20, 5, 2, 3), 4, ((1, 1), (1, 1), (0, 0), (1, 1), 1)),
    "by pixel, pointwise with stride": ((16, 3, 4, 3), 4, ((1, 1), (2, 2), (0, 0), (1, 1), 1)),
    "by pixel, patches": ((16, 2, 4, 4), 3, ((2, 2), (2, 2), (0, 0), (1, 1), 1)),
    "stride over kernel and image": ((2, 3, 3, 7), 5, ((2, 1), (5, 4), (1, 0), (1, 1), 1)),
    "padding over kernel": ((2, 2, 2, 2), 2, ((2, 2), (1, 1), (3, 2), (1, 1), 1)),
    "no image": ((0, 3, 4, 4), 2, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
}


class Operands:
    def __init__(self, name, dtype=torch.float32, w_dtype=None, density=0.4, wide_pointers=False):
        torch.manual_seed(0)
        shape, out_channels, geometry = GEOMETRIES[name]
        self.geometry = Geometry(*geometry)
        self.mask = random_mask(out_channels, shape[1] // self.geometry.groups * self.geometry.taps, density)
        ccol, row, crow, col, perm = Pattern.from_mask(self.mask).tensors()
        if wide_pointers:
            ccol, crow, perm = ccol.long(), crow.long(), perm.long()
        self.topology = ccol, row, crow, col, perm
        self.x = torch.randn(shape, device=DEVICE).to(dtype)
        size = self.geometry.output_size(shape[2:])
        self.grad = torch.randn(shape[0], out_channels, *size, device=DEVICE).to(dtype)
        self.w = torch.randn(row.numel(), device=DEVICE).to(w_dtype or dtype)
        self.bias = torch.randn(out_channels, device=DEVICE).to(w_dtype or dtype)

    def results(self, products, alone=False):
        """The products, by name; ``alone`` those apart that backward has together, too."""
        x, grad, w, (ccol, row, *by_row) = self.x, self.grad, self.w, self.topology
        dx, dw, dbias = products.conv2d_backward(grad, x, w, ccol, row, *self.geometry, w.dtype)
        results = {
            "y": products.conv2d(x, w, self.bias, ccol, row, *by_row, *self.geometry),
            "dx": dx,
            "dw": dw,
            "dbias": dbias,
        }
        if alone:
            results["y without bias"] = products.conv2d(x, w, None, ccol, row, *by_row, *self.geometry)
            results["dx alone"] = products.conv2d_input_grad(grad, w, ccol, row, x.shape[2:], *self.geometry)
            results["dw alone"] = products.conv2d_weight_grad(grad, x, ccol, row, *self.geometry)
        return results


# Half precision, which the interpreter computes slowly, on every third one.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, FLOATS[0]) for name in GEOMETRIES] + [(name, dtype) for name in [*GEOMETRIES][::3] for dtype in FLOATS[1:]],
)
def test_kernels_equal_their_twins(name, dtype):
    operands = Operands(name, dtype)
    assert_equal_their_twins(operands)
    batch, size = operands.x.shape[0], operands.grad.shape[2:]
    if "by pixel" in name or "planes" in name:
        assert pixels_apart(batch, size) == name.startswith("by pixel")


@pytest.mark.parametrize("name", ["planes, groups", "planes, pointwise", "by pixel, stride", "no image"])
def test_products_alone(name):
    assert_equal_their_twins(Operands(name), alone=True)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("name", ["planes, groups", "by pixel, patches"])
def test_no_edges_and_all(name, density):
    assert_equal_their_twins(Operands(name, density=density))


@pytest.mark.parametrize(("name", "dtype"), [("planes", torch.bfloat16), ("by pixel", torch.float16)])
def test_half_activations_with_float32_values(name, dtype):
    results = assert_equal_their_twins(Operands(name, dtype, torch.float32), alone=True)
    assert results["dw"].dtype == results["dw alone"].dtype == torch.float32


@pytest.mark.parametrize("name", ["planes, groups", "by pixel, stride"])
def test_int64_pointers(name):
    assert_equal_their_twins(Operands(name, wide_pointers=True))


@pytest.mark.parametrize("name", ["planes, groups", "by pixel"])
def test_results_do_not_depend_on_the_indices_dtype(name, monkeypatch):
    expected = Operands(name).results(backend)
    asked = []
    for module in ("layout", "conv2d_edges"):
        monkeypatch.setattr(
            f"sparsekern.backends.triton.{module}.index_dtype", lambda below: asked.append(below) or torch.int32
        )
    results = Operands(name).results(backend)
    assert len(asked) == 2  # forward's columns, and the rows and taps of the input's gradient
    assert all(torch.equal(value, expected[name]) for name, value in results.items())


def test_indices_of_16_bits_where_they_suffice():
    """More than 32,768 columns, and channels of the output times taps."""
    mask = torch.zeros(2, 3700 * 9, dtype=torch.bool, device=DEVICE)
    mask[0, 5], mask[:, 32770], mask[1, 33296] = True, True, True
    ccol, row, *by_row = Pattern.from_mask(mask).tensors()
    geometry, w = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1), torch.randn(4, device=DEVICE)
    x = torch.randn(1, 3700, 2, 2, device=DEVICE)
    y, expected = (products.conv2d(x, w, None, ccol, row, *by_row, *geometry) for products in (backend, reference))
    assert_close(y, expected, 1e-5)
    mask = torch.zeros(3700, 9, dtype=torch.bool, device=DEVICE)
    mask[0, 5], mask[3645, 1:3], mask[3699, 4] = True, True, True
    ccol, row, *_ = Pattern.from_mask(mask).tensors()
    arguments = torch.randn(1, 3700, 2, 2, device=DEVICE), w, ccol, row, (2, 2), *geometry
    dx, expected = (products.conv2d_input_grad(*arguments) for products in (backend, reference))
    assert_close(dx, expected, 1e-5)


def strided(name, images):
    """The same values elsewhere in memory."""
    if name == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if name == "every second column":
        return torch.stack([images, torch.full_like(images, float("nan"))], 4).flatten(3)[..., ::2]
    if name == "by pixel":
        return images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if name == "within others":
        return torch.nn.functional.pad(images, (1, 2, 2, 0, 1, 1), value=float("nan"))[:, 1:-1, 2:, 1:-2]
    return images[:, :1, :, :1].expand(images.shape)


@pytest.mark.parametrize("geometry", ["planes", "planes, pointwise", "by pixel, stride"])
@pytest.mark.parametrize("name", ["channels_last", "every second column", "by pixel", "within others", "expanded"])
def test_strided_operands(name, geometry):
    operands = Operands(geometry)
    operands.x, operands.grad = strided(name, operands.x), strided(name, operands.grad)
    operands.w = torch.stack([operands.w, operands.w + 1], 1)[:, 0]
    operands.bias = operands.bias[:1].expand(operands.bias.shape)
    assert_equal_their_twins(operands)


def test_a_few_large_images_are_read_as_they_lie(monkeypatch):
    monkeypatch.delattr("sparsekern.backends.triton.images.by_feature")
    assert_equal_their_twins(Operands("planes"), alone=True)


def test_images_that_lie_as_the_kernels_read_them_are_not_copied():
    x = torch.randn(2, 5, 3, 16, device=DEVICE)
    assert Images.of(x, False).data.data_ptr() == Images.of(x[:, 1:], False).data.data_ptr() - 4 * 48 == x.data_ptr()
    by_pixel = x.permute(3, 0, 1, 2)
    assert Images.of(by_pixel, True).data.data_ptr() == x.data_ptr()
    assert Images.of(by_pixel[:15], True).data.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", ["planes, groups", "by pixel"])
def test_only_what_edges_join_is_read(name):
    operands = Operands(name)
    groups, taps = operands.geometry.groups, operands.geometry.taps
    mask = operands.mask.view(groups, -1, operands.mask.shape[1])
    mask[:, :, :taps] = False  # the first channel of each group
    operands.topology = Pattern.from_mask(operands.mask).tensors()
    operands.w = operands.w[: int(operands.mask.sum())]
    empty_row = operands.mask.any(1).logical_not().nonzero()[0]
    operands.x[:, :: operands.x.shape[1] // groups] = float("nan")
    operands.grad[:, empty_row] = float("inf")
    results = operands.results(backend)
    assert all(results[name].isfinite().all() for name in ("y", "dx", "dw"))
    last = operands.x.shape[0] - 1
    operands.x[last, -1] = float("nan")
    y = operands.results(backend)["y"]
    joined = mask[-1, :, -taps:].any(1)
    assert joined.any()
    assert y[:last].isfinite().all()
    assert torch.equal(y[last].isnan().flatten(1).any(1)[-joined.numel() :], joined)


@pytest.mark.parametrize("name", ["planes, groups", "by pixel, depthwise"])
def test_results_are_the_same_each_time(name):
    operands = Operands(name, torch.float16)
    first, second = operands.results(backend), operands.results(backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_float64_is_the_references():
    operands = Operands("planes", torch.float64)
    expected = operands.results(reference, alone=True)
    assert all(torch.equal(value, expected[name]) for name, value in operands.results(backend, alone=True).items())


def test_edges_by_channel():
    operands = Operands("by pixel, stride")
    ccol, row = operands.topology[:2]
    geometry, size = operands.geometry, operands.x.shape[2:]
    edges = by_channel(ccol, row, 3, size, geometry)
    assert edges.phases == (2, 2)
    assert edges.indices.dtype == torch.int16
    found = []
    for at in range(2 * 4):
        for k in range(int(edges.pointers[at]), int(edges.pointers[at + 1])):
            out, tap = divmod(int(edges.indices[k]), 9)
            phase = (tap // 3 - 1) % 2 * 2 + (tap % 3 - 1) % 2
            assert phase == at % 4
            found.append((at // 4 * 9 + tap, out))
    stored = operands.mask.t().nonzero().tolist()
    assert sorted(found) == [tuple(place) for place in stored]
    assert [tuple(stored[number]) for number in edges.order.tolist()] == found


def test_edges_by_channel_are_kept_until_the_topology_changes():
    operands = Operands("planes, stride")
    ccol, row = operands.topology[:2]
    first = by_channel(ccol, row, 3, (7, 8), operands.geometry)
    assert by_channel(ccol, row, 3, (9, 9), operands.geometry) is first
    other = by_channel(ccol, row, 3, (7, 8), operands.geometry._replace(padding=(0, 0)))
    assert not torch.equal(other.indices, first.indices)
    row.copy_(row.clone())
    again = by_channel(ccol, row, 3, (7, 8), operands.geometry)
    assert again is not first
    assert torch.equal(again.indices, first.indices)


def test_edges_in_the_order_in_which_they_are_stored_are_not_sorted():
    for name, sorted_ in (("planes", False), ("planes, groups", True), ("planes, stride", True)):
        operands = Operands(name)
        size = operands.x.shape[2:]
        edges = by_channel(*operands.topology[:2], operands.grad.shape[1], size, operands.geometry)
        assert (edges.order is not None) == sorted_, name


def test_what_is_read_16_bytes_at_a_time():
    pointwise, kernel = Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    planes = torch.randn(2, 4, 1, 64, device=DEVICE)
    assert Images.of(planes, False).wide(pointwise)
    assert not Images.of(planes, False).wide(kernel)
    assert Images.of(planes, True).wide(kernel)
    assert not Images.of(planes[..., :63].contiguous(), False).wide(pointwise)
    assert not Images.of(planes.flatten()[1:257].view(1, 4, 1, 64), False).wide(pointwise)


def test_tiles_by_shape():
    assert [width_of_tiles(width, 64) for width in (1, 7, 14, 17, 28, 56, 112, 224)] == [8, 8, 16, 8, 32, 64, 64, 64]
    assert [width_of_tiles(width, 64) for width in (16, 32, 48, 64, 80, 1024)] == [16, 32, 16, 64, 16, 64]
    assert tile(7, 7, 64) == (8, 8)
    assert tile(3, 16, 64) == (4, 16)
    assert tile(56, 64, 64) == (1, 64)
    # Many images, and outputs of few pixels; not a few large images.
    assert all(
        pixels_apart(batch, size) for batch, size in [(16, (224, 224)), (128, (1, 1)), (4, (1, 1)), (12, (2, 2))]
    )
    assert not any(
        pixels_apart(batch, size) for batch, size in [(13, (224, 224)), (1, (7, 7)), (8, (1, 784)), (0, (1, 1))]
    )
