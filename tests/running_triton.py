"""Run by test_triton.py beside running_gpu.py: how the Triton kernels have their operands and share the work.

In Triton's interpreter on the CPU, or, without TRITON_INTERPRET, on a GPU.
"""

import pytest
import torch
from gpu_backend import DEVICE, Operands, assert_close, assert_equal_their_twins, backend, random_mask

from sparsekern import Pattern, SparseLinear
from sparsekern.backends import reference
from sparsekern.backends.triton import layout
from sparsekern.backends.triton.layout import by_feature, edge_tile, index_dtype, longest_first, narrow, row_tile
from sparsekern.backends.triton.transpose import transpose

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_long_rows_come_first():
    mask = torch.zeros(40, 90, dtype=torch.bool, device=DEVICE)
    mask[7], mask[:, 81], mask[39, 3] = True, True, True
    order = longest_first(Pattern.from_mask(mask).crow_indices)
    assert order[:2].tolist() == [7, 39]
    assert sorted(order.tolist()) == list(range(40))


def test_the_order_follows_a_topology_that_changes():
    pattern = Pattern.from_mask(torch.tensor([[1] * 6, [1] + [0] * 5, [0] * 6]))
    layer = SparseLinear(6, 3, device=DEVICE, pattern=pattern)
    assert longest_first(layer.crow_indices).tolist() == [0, 1, 2]
    layer.set_pattern(Pattern.from_mask(torch.tensor([[0] * 6, [1] + [0] * 5, [1] * 6])))
    assert longest_first(layer.crow_indices).tolist() == [2, 1, 0]


def test_indices_of_16_bits_where_they_suffice():
    assert (index_dtype(32768), index_dtype(32769)) == (torch.int16, torch.int32)
    mask = torch.zeros(3, 33000, dtype=torch.bool, device=DEVICE)
    mask[0, 5], mask[:2, 32999], mask[2, 32768] = True, True, True
    operands = Operands(2, mask)
    _, row, crow, col, perm = operands.topology
    assert narrow(col, 33000) is col
    short = narrow(row, 3)
    assert short.dtype == torch.int16
    assert torch.equal(short, row)
    assert narrow(row, 3) is short
    row.copy_(row.clone())
    assert narrow(row, 3) is not short
    y = backend.linear(operands.x, operands.w, operands.bias, *operands.topology[:2], crow, col, perm)
    assert_close(y, reference.linear(operands.x, operands.w, operands.bias, *operands.topology), 1e-5)
    operands = Operands(2, mask.t())
    grad, w, (ccol, row, *_) = operands.grad, operands.w, operands.topology
    dx, expected = (products.linear_input_grad(grad, w, ccol, row) for products in (backend, reference))
    assert_close(dx, expected, 1e-5)


def test_results_do_not_depend_on_the_indices_dtype(monkeypatch):
    mask = random_mask(9, 30, 0.5)
    torch.manual_seed(0)
    expected = Operands(19, mask).results(backend)
    monkeypatch.setattr(layout, "index_dtype", lambda below: torch.int32)
    torch.manual_seed(0)
    results = Operands(19, mask).results(backend)
    assert all(torch.equal(value, expected[name]) for name, value in results.items())


def test_a_row_gathers_as_many_elements_whatever_its_tokens():
    assert [row_tile(1024, tokens) for tokens in (1, 16, 17, 10**6)] == [(64, 16), (64, 16), (32, 32), (16, 64)]


def test_few_edges_are_spread_and_many_are_not(monkeypatch):
    # What a warp gathers at once, tokens and edges, and how they are shared out: (edges, tokens, warps).
    assert edge_tile(1024, 8192, 10**6) == (8, 64, 1)
    assert edge_tile(1024, 8192, 10**4) == (2, 256, 1)
    assert edge_tile(1024, 8192, 1000) == (1, 4096, 8)
    assert edge_tile(1024, 100, 1000) == (4, 128, 1)
    assert edge_tile(512, 16, 1000) == (16, 16, 1)
    operands = Operands(100, random_mask(5, 7, 0.5))
    assert_equal_their_twins(operands)
    monkeypatch.setattr(layout, "_PROGRAMS", 1)
    assert_equal_their_twins(operands)


def test_activations_that_lie_by_feature_are_not_copied():
    x = torch.randn(7, 32, device=DEVICE).t()
    assert by_feature(x).data_ptr() == x.data_ptr()
    assert by_feature(x[:31]).data_ptr() != x.data_ptr()
    # Where features do not start at multiples of 16 bytes they are not read 16 bytes at a time.
    for apart in (torch.randn(7, 33, device=DEVICE)[:, :32].t(), torch.randn(225, device=DEVICE)[1:].view(7, 32).t()):
        assert by_feature(apart).data_ptr() != apart.data_ptr()
        assert torch.equal(by_feature(apart)[:, :32], apart.t())


def test_transposes_of_parts_with_zeros_after_them():
    # More rows are asked for than another tile holds, and fewer columns than there are.
    x, out = torch.randn(3, 90, device=DEVICE), torch.empty(70, 200, device=DEVICE)
    transpose(x[:, :80], out)
    assert torch.equal(out[:, :3], x[:, :70].t())
    assert not out[:, 3:].any()
