"""Run by test_cuda.py beside running_gpu.py: what the CUDA kernels for 16-bit activations are made of, and their edges.

On CPU tensors, thread by thread over csrc/cuda/emulation, or, where no emulated module is named, on a GPU.
"""

import random
import sys
from itertools import pairwise

import pytest
import torch
from gpu_backend import (
    DEVICE,
    HALVES,
    NAME,
    SHARED_BYTES,
    Operands,
    assert_close,
    assert_equal_their_twins,
    backend,
    conflicts,
    emulate,
    random_mask,
)

import sparsekern
from sparsekern import Pattern, SparseLinear
from sparsekern.backends import reference, triton
from sparsekern.backends.cuda import served
from sparsekern.backends.cuda.activations import by_feature
from sparsekern.backends.cuda.cuts import chunk_of, spmm_tile
from sparsekern.backends.cuda.extension import is_emulated, kernels, queue_of
from sparsekern.backends.cuda.slots import GROUP, layout, packed

LINEAR = sys.modules["sparsekern.backends.cuda.linear"]  # the package has a function of that name

CUTS = sys.modules["sparsekern.backends.cuda.cuts"]

pytestmark = pytest.mark.usefixtures("poisoned_memory", "large_gpu")


# Transposition


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (64, 5), (0, 3)])
@pytest.mark.parametrize("order", [0, 1])
def test_transpose(shape, dtype, order):
    emulate(order)
    rows, columns = shape
    room = -(-rows // 16) * 16
    wide = torch.randn(rows, columns + 3, device=DEVICE).to(dtype)
    out = torch.full((columns, room), float("nan"), dtype=dtype, device=DEVICE)
    place = wide.data_ptr(), rows, columns, wide.stride(0)
    kernels().transpose(queue_of(wide), *place, out.data_ptr(), room, wide.element_size())
    assert torch.equal(out[:, :rows], wide[:, :columns].t())
    assert not out[:, rows:].any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (70, 37), (64, 136), (33, 64)])
def test_halves_by_feature(shape, aligned, dtype):
    emulate(order_seed=1)
    tokens, features = shape
    x = torch.randn(tokens, features + 8, device=DEVICE).to(dtype)[:, (0 if aligned else 1) :][:, :features]
    natural, interleaved = by_feature(x, sums=True), by_feature(x, interleaved=True)
    assert torch.equal(natural.tensor[:, :tokens], x.t())
    assert not natural.tensor[:, tokens:].any()
    torch.testing.assert_close(natural.sums.sum(0), x.float().sum(0))
    assert interleaved.tensor.shape[1] == -(-tokens // 32) * 32
    # Token 8 i + 2 t + h of 32 is at place 8 t + 2 i + h.
    by_place = interleaved.tensor.view(features, -1, 4, 4, 2).transpose(2, 3).reshape(features, -1)
    assert torch.equal(by_place[:, :tokens], x.t())
    assert not by_place[:, tokens:].any()


def test_activations_that_lie_by_feature_are_not_copied():
    x = torch.randn(7, 24, device=DEVICE).bfloat16().t()
    assert by_feature(x).tensor.data_ptr() == x.data_ptr()
    assert by_feature(x[:23]).tensor.data_ptr() != x.data_ptr()
    assert by_feature(x, interleaved=True).tensor.data_ptr() != x.data_ptr()


# Slots


def memory_of(slot):
    return slot % 8 // 2 * 4 + slot // 8 * 2 + slot % 2


def assert_holds(made, values, edge_of):
    """Each edge has one slot, with its value; others add nothing and read what their group reads."""
    slots = (packed(made, values, torch.float16).cpu().long() & 0xFFFFFFFF).tolist()
    rounded = values.half().cpu().view(torch.int16).long().bitwise_and(0xFFFF).tolist()
    pointers, edges, lists = made.pointers.tolist(), made.edges.tolist(), made.lists.tolist()
    joined = {minor for _, minor in edge_of}
    order = None if made.order is None else made.order.tolist()
    blocks, seen, wavefronts = made.cut.blocks, set(), 0
    assert pointers[-1] <= made.most_groups
    for number, (start, end) in enumerate(pairwise(pointers)):
        chunk, block = divmod(number, blocks + 1)
        minors = range(made.cut.minors) if order is None else order[min(block, blocks - 1) // made.cut.set_blocks]
        minors = minors[chunk * made.chunk :][: made.chunk]
        if order is not None:
            assert sorted(minors) == list(range(len(minors)))
            minors = [chunk * made.chunk + minor for minor in minors]
        for group in range(start, end):
            assert lists[group] == (number if block < blocks else -1)
            for octet in (range(8), range(8, 16)):
                places = [group * GROUP + memory_of(slot) for slot in octet]
                rows = {slots[place] & 0x1FFF for place in places}
                read = {minors[at] for at in rows}
                if block < blocks:
                    wavefronts += max(sum(at % 8 == least for at in rows) for least in range(8))
                for place in places:
                    value = slots[place] >> 16
                    if edges[place] < 0:
                        assert value == 0
                        continue
                    of_block = slots[place] >> 13 & 7
                    major = block // 2 * 16 + of_block // 2 * 4 + block % 2 * 2 + of_block % 2
                    minor = minors[slots[place] & 0x1FFF]
                    assert edge_of[major, minor] == edges[place]
                    assert value == rounded[edges[place]]
                    seen.add(edges[place])
                if block < blocks and any(edges[place] >= 0 for place in places):
                    assert read <= joined
    assert len(seen) == len(edge_of)
    return wavefronts


@pytest.mark.parametrize("shape", [(1, 1, 1.0), (37, 50, 0.3), (40, 70, 0.1), (5, 9, 0.0)])
@pytest.mark.parametrize(("chunk", "filled", "set_blocks"), [(16, 256, 0), (200, 1, 1000), (16, 1, 2)])
def test_every_edge_has_a_slot(shape, chunk, filled, set_blocks):
    torch.manual_seed(1)
    *size, density = shape
    mask = torch.rand(size) < density
    ccol, row, crow, col, perm = (tensor.to(DEVICE) for tensor in Pattern.from_mask(mask).tensors())
    values = torch.randn(row.numel(), device=DEVICE)
    stored = [(int(c), int(r)) for c, r in mask.t().nonzero()]
    by_column = {edge: number for number, edge in enumerate(stored)}
    by_row = {(r, c): number for number, (c, r) in enumerate(stored)}
    rows, columns = size
    of_columns = layout(ccol, row, None, rows, min(chunk, rows), filled, set_blocks)
    assert_holds(of_columns, values, by_column)
    assert_holds(layout(crow, col, perm, columns, min(chunk, columns), filled, set_blocks), values, by_row)
    if filled > 1 and rows > chunk:
        assert all(start % filled == 0 for start in of_columns.pointers.tolist()[:: of_columns.cut.blocks + 1])


def test_slots_are_in_an_order_without_many_bank_conflicts():
    torch.manual_seed(2)
    mask = torch.rand(128, 904) < 0.02
    _, row, crow, col, perm = (tensor.to(DEVICE) for tensor in Pattern.from_mask(mask).tensors())
    edge_of = {(int(r), int(c)): n for n, (c, r) in enumerate(mask.t().nonzero())}
    values = torch.randn(row.numel(), device=DEVICE)
    for set_blocks, most in ((0, 1.4), (1000, 1.2)):
        made = layout(crow, col, perm, 904, 904, 1, set_blocks)
        assert assert_holds(made, values, edge_of) <= most * row.numel() / 8


def test_lists_beyond_shared_memory_are_not_counted():
    emulate(shared_bytes=4 * 32 + 608)
    mask = random_mask(90, 24, 0.3)
    _, row, crow, col, perm = Pattern.from_mask(mask).to(DEVICE).tensors()
    edge_of = {(int(r), int(c)): n for n, (c, r) in enumerate(mask.t().nonzero())}
    assert_holds(layout(crow, col, perm, 24, 24, 1, 1000), torch.randn(row.numel(), device=DEVICE), edge_of)


def test_a_pattern_whose_columns_share_banks_is_spread():
    mask = torch.zeros(16, 256, dtype=torch.bool)
    mask[:, ::8] = True
    _, row, crow, col, perm = Pattern.from_mask(mask).to(DEVICE).tensors()
    edge_of = {(int(r), int(c)): n for n, (c, r) in enumerate(mask.t().nonzero())}
    values = torch.randn(row.numel(), device=DEVICE)
    assert assert_holds(layout(crow, col, perm, 256, 256, 1), values, edge_of) == row.numel()
    assert assert_holds(layout(crow, col, perm, 256, 256, 1, 1000), values, edge_of) <= row.numel() / 4


@pytest.mark.parametrize("tile", [(64, 4), (32, 8), (16, 2)])
def test_matrices_are_read_without_many_bank_conflicts(tile, monkeypatch):
    """What the slots' order leaves, with which the choice of tiles reckons; none where a matrix is transposed."""
    torch.manual_seed(2)
    monkeypatch.setattr(LINEAR, "spmm_tile", lambda *shape: (tile, 904))
    operands = Operands(tile[0], torch.rand(904, 32, device=DEVICE) < 0.05, torch.bfloat16)
    x, w, (ccol, row, *_) = operands.x, operands.w, operands.topology
    grad = operands.grad.t().contiguous().t()
    assert conflicts(lambda: by_feature(operands.grad)) == conflicts(lambda: by_feature(x, interleaved=True)) == 1
    gathered, stationary = by_feature(grad), by_feature(x, interleaved=True)
    made = LINEAR._by_column(ccol, row, 904, 904)
    assert conflicts(lambda: backend.linear_input_grad(grad, w, ccol, row)) <= CUTS._CONFLICTS
    assert conflicts(lambda: LINEAR._at_edges(gathered, stationary, made, row.numel(), w.dtype)) <= CUTS._CONFLICTS


def test_layouts_do_not_depend_on_the_order_of_threads():
    tensors = Pattern.from_mask(random_mask(60, 50, 0.3)).to(DEVICE).tensors()
    made = []
    for order in (0, 1, 2):
        emulate(order)
        _, _, crow, col, perm = (tensor.clone() for tensor in tensors)
        of_rows = layout(crow, col, perm, 50, 24, 256)
        last = int(of_rows.pointers[-1])
        made.append((of_rows.pointers, of_rows.places[: last * 16], of_rows.edges[: last * 16], of_rows.lists[:last]))
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))


def test_layouts_are_kept_and_follow_a_topology_that_changes():
    layer = SparseLinear(16, 8, density=0.3, device=DEVICE)

    def of_rows(chunk=16):
        return layout(layer.crow_indices, layer.col_indices, layer.permutation, 16, chunk, 1)

    first = of_rows()
    assert of_rows() is first
    assert of_rows(8) is not first
    assert of_rows() is first
    layer.set_pattern(Pattern.random((8, 16), layer.nnz).to(DEVICE))
    assert of_rows() is not first


# Products


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tile", [(64, 4), (32, 8), (32, 2), (16, 2)])
def test_each_tile(tile, dtype, monkeypatch):
    """More rows than a set, more tokens than a tile, more columns than a chunk, more work than processors."""
    assert tile in kernels().spmm_tiles
    tokens, blocks = tile
    module = LINEAR
    monkeypatch.setattr(module, "spmm_tile", lambda *shape: (tile, chunk_of(tokens * 4 * 40, tokens, shape[2])))
    operands = Operands(tokens + 9, random_mask(16 * 8 * blocks + 21, 70, 0.04), dtype)
    arguments = operands.x, operands.w, operands.bias, *operands.topology
    assert_close(backend.linear(*arguments), reference.linear(*arguments), 1e-2)


@pytest.mark.parametrize("chunk", [8, 24])
def test_columns_beyond_a_chunk(chunk, monkeypatch):
    emulate(order_seed=1)
    for module in (CUTS, LINEAR):
        monkeypatch.setattr(module, "chunk_of", lambda *shape: chunk)
    spmm_tile.cache_clear()
    for tokens in (9, 65):
        assert_equal_their_twins(Operands(tokens, random_mask(36, 43, 0.2), torch.float16))
    spmm_tile.cache_clear()


def test_each_chunk_has_an_order_of_its_own(monkeypatch):
    """Rows and columns of one class and of another, all full: they are spread over the classes of their chunk."""
    for module in (CUTS, LINEAR):
        monkeypatch.setattr(module, "chunk_of", lambda *shape: 32)
    spmm_tile.cache_clear()
    mask = torch.zeros(64, 64, dtype=torch.bool)
    full = [*range(0, 32, 8), *range(33, 64, 8)]
    mask[full] = mask[:, full] = True
    assert_equal_their_twins(Operands(9, mask, torch.float16))
    spmm_tile.cache_clear()


@pytest.mark.parametrize("processors", [1, 3, 40])
def test_tokens_split_over_processors(processors):
    emulate(processors=processors)
    operands = Operands(64 * 5 + 3, random_mask(40, 30, 0.1), torch.float16)
    assert_equal_their_twins(operands)
    made = layout(*operands.topology[:2], None, 40, 40, 256)
    splits = [kernels().sddmm_splits(queue_of(operands.x), made.most_groups, 323, most) for most in (1, 4, 16)]
    assert splits[0] == 1
    assert all(1 <= split <= most for split, most in zip(splits, (1, 4, 16), strict=True))
    if is_emulated():
        assert (splits[-1] > 1) == (processors > 1)


def test_shapes_at_random():
    generator = random.Random(0)
    for number in range(12):
        torch.manual_seed(number)
        shared_bytes = generator.choice([8192, 12000, 99 * 1024, 163 * 1024, SHARED_BYTES])
        emulate(generator.randrange(3), shared_bytes, generator.randrange(1, 9))
        sizes = [[generator.randrange(1, 90), 8 * generator.randrange(1, 12)] for _ in range(3)]
        tokens, columns, rows = map(generator.choice, sizes)
        density = generator.choice([0.02, 0.1, 0.4, 1.0]) if rows * columns < 1500 else 0.05
        dtype = generator.choice(HALVES)
        w_dtype = generator.choice([dtype, torch.float32])
        operands = Operands(tokens, random_mask(rows, columns, density), dtype, w_dtype, generator.random() < 0.3)
        assert_equal_their_twins(operands)


def test_results_do_not_depend_on_the_order_of_threads():
    operands, results = Operands(70, random_mask(40, 50, 0.3), torch.float16), []
    for order in (0, 1, 2):
        emulate(order, shared_bytes=8192)
        results.append(operands.results(backend))
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_values_that_are_not_finite_reach_their_blocks():
    mask = random_mask(37, 40, 0.1).cpu()
    operands = Operands(18, mask, torch.bfloat16)
    operands.x[:, 20] = float("nan")  # the empty column
    operands.grad[:, 18] = float("inf")  # the empty row
    results = operands.results(backend)
    assert all(results[name].isfinite().all() for name in ("y", "dx", "dw"))
    joined = int(mask.any(0).nonzero()[0])
    operands.x[3, joined] = float("nan")
    results = operands.results(backend)
    # Its own values' gradients; its own rows at its own token, and no others than those of their blocks.
    columns = torch.repeat_interleave(operands.topology[0].long().diff())
    assert torch.equal(results["dw"].isnan(), columns == joined)
    nans = results["y"].isnan()
    assert nans.any(1).nonzero().tolist() == [[3]]
    rows = torch.arange(37)
    block = rows // 16 * 2 + rows // 2 % 2
    hit = set(block[mask[:, joined]].tolist())
    assert torch.equal(nans[3].cpu(), torch.tensor([int(number) in hit for number in block]))


def test_what_is_too_sparse_goes_elsewhere(monkeypatch):
    """To Triton, where that serves: it gathers from memory what would be copied for less than one use."""
    asked = []
    monkeypatch.setattr(served, "other", lambda *of: asked.append(of) or reference)
    masks = torch.zeros(40, 50, dtype=torch.bool), random_mask(40, 50, 0.1)
    sparse, dense = (Operands(3, mask, torch.bfloat16) for mask in masks)
    sparse.results(backend)
    assert asked
    asked.clear()
    dense.results(backend)
    assert not asked
    monkeypatch.setattr(served, "other", lambda *of: triton)
    layers = [SparseLinear(64, 64, density=edges / 4096, device=DEVICE).bfloat16() for edges in (3, 4)]
    with sparsekern.backend(NAME):
        assert [sparsekern.backend_of(layer) for layer in layers] == ["triton", NAME]


@pytest.mark.parametrize("name", ["nnz", "rows", "columns"])
def test_what_32_bits_do_not_number_goes_elsewhere(name, monkeypatch):
    asked = []
    monkeypatch.setattr(served, "other", lambda *of: asked.append(of) or reference)
    monkeypatch.setattr(served, "_MOST", 39)
    shape = {"nnz": (20, 20), "rows": (40, 10), "columns": (10, 40)}[name]
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[: 40 if name == "nnz" else 7] = True
    assert_equal_their_twins(Operands(3, mask, torch.float16))
    assert len(asked) == 2
    monkeypatch.setattr(served, "_MOST", 40)
    assert_equal_their_twins(Operands(3, mask, torch.float16))
    assert len(asked) == 2


def test_tiles_fit_into_shared_memory():
    for shared_bytes in (99 * 1024, 163 * 1024, SHARED_BYTES):
        for tokens in (16, 32, 64):
            for minors in (1, 7, 8, 600, 900, 4096, 4097, 50000):
                chunk = chunk_of(shared_bytes, tokens, minors)
                chunks = -(-minors // chunk)
                assert chunk <= 8192
                assert min(chunks, 2) * chunk * tokens * 2 <= shared_bytes
                assert chunk % 8 == 0 or chunks == 1
    # Few tokens: small tiles, so that more processors have work.
    few, _ = spmm_tile(64, 4096, 4096, 4096 * 41, SHARED_BYTES, 132)
    many, chunk = spmm_tile(8192, 4096, 4096, 4096 * 41, SHARED_BYTES, 132)
    assert few[1] < many[1]
    assert chunk == chunk_of(SHARED_BYTES, many[0], 4096)
