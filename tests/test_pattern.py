import copy
import gc
import io
import itertools
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsekern import pattern as pattern_module
from sparsekern.backends.choice import topology_of
from sparsekern.pattern import Pattern, check_csc, check_tensors

SHAPES = [(1, 1), (7, 5), (300, 200), (5000, 3), (3, 9000), (1, 40), (40, 1)]


@pytest.fixture(params=["int32", "int64"])
def pointers(request, monkeypatch):
    """Runs a test with each width of pointer arrays; the wide one is otherwise for 2**31 edges and more."""
    if request.param == "int64":
        monkeypatch.setattr(pattern_module, "INT32_EDGES", 0)
    return getattr(torch, request.param)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def arrays(mask):
    """(ccol, row, crow, col, permutation) of a dense mask, straightforwardly."""
    rows, cols = mask.shape
    stored = [(r, c) for c in range(cols) for r in range(rows) if mask[r, c]]
    by_row = sorted(range(len(stored)), key=lambda k: stored[k])
    ccol = np.concatenate([[0], np.cumsum(mask.sum(0))])
    crow = np.concatenate([[0], np.cumsum(mask.sum(1))])
    return ccol, [r for r, _ in stored], crow, [stored[k][1] for k in by_row], by_row


def assert_is(pattern, mask):
    pattern.validate()
    for tensor, expected in zip(pattern.tensors(), arrays(mask), strict=True):
        assert tensor.tolist() == list(expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0, 0.01, 0.5, 0.9, 1])
def test_constructors_agree(shape, density, pointers):
    nnz = round(density * shape[0] * shape[1])
    pattern = Pattern.random(shape, nnz, generator())
    pattern.validate()
    assert pattern.nnz == nnz
    assert pattern.ccol_indices.dtype == pattern.crow_indices.dtype == pattern.permutation.dtype == pointers
    assert pattern.row_indices.dtype == pattern.col_indices.dtype == torch.int32
    assert pattern.density == pytest.approx(nnz / (shape[0] * shape[1]))
    mask = pattern.to_mask()
    assert mask.shape == shape
    assert int(mask.sum()) == nnz
    rows, cols = pattern.edges()
    shuffled = torch.randperm(nnz, generator=generator())
    for twin in (
        Pattern.from_mask(mask),
        Pattern.from_csc(shape, pattern.ccol_indices.long(), pattern.row_indices.long()),
        Pattern.from_csr(shape, pattern.crow_indices, pattern.col_indices),
        Pattern.from_coo(shape, rows[shuffled], cols[shuffled].int()),
        pattern.clone(),
    ):
        assert twin.equal(pattern)
        assert all(torch.equal(a, b) for a, b in zip(twin.tensors(), pattern.tensors(), strict=True))
    assert torch.equal(pattern.fan_in(), mask.sum(1))
    assert torch.equal(pattern.fan_out(), mask.sum(0))
    if shape[0] * shape[1] < 100:
        assert_is(pattern, mask.numpy())


def test_equal_sees_each_difference():
    pattern = Pattern.from_coo((3, 3), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert not pattern.equal(Pattern.from_coo((3, 3), torch.tensor([0, 2]), torch.tensor([0, 1])))
    assert not pattern.equal(Pattern.from_coo((3, 3), torch.tensor([0, 1]), torch.tensor([0, 2])))
    assert not pattern.equal(Pattern.from_coo((3, 4), torch.tensor([0, 1]), torch.tensor([0, 1])))
    assert not pattern.equal(Pattern.from_coo((3, 3), torch.tensor([0]), torch.tensor([0])))


def test_does_not_share_the_callers_tensors():
    ccol, row = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    pattern = Pattern.from_csc((3, 1), ccol, row)
    row[0] = 7
    pattern.validate()


def test_random_is_uniform_and_seeded():
    counts = np.zeros(12)
    source = generator(3)
    for _ in range(6000):
        counts[Pattern.random((4, 3), 2, source).to_mask().t().reshape(-1).numpy()] += 1
    expected = counts.sum() / 12
    assert ((counts - expected) ** 2 / expected).sum() < 11 + 5 * np.sqrt(22)
    pairs = {tuple(Pattern.random((2, 2), 2, source).row_indices.tolist()) for _ in range(100)}
    assert len(pairs) == 4
    assert Pattern.random((50, 60), 300, generator(1)).equal(Pattern.random((50, 60), 300, generator(1)))
    assert not Pattern.random((50, 60), 300, generator(1)).equal(Pattern.random((50, 60), 300, generator(2)))
    torch.manual_seed(5)
    first = Pattern.random((50, 60), 300)
    torch.manual_seed(5)
    assert Pattern.random((50, 60), 300).equal(first)


def test_result_does_not_depend_on_threads():
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(Pattern.random((70_000, 1000), 1_100_000, generator()))
            found[-1].validate()
            found[-1].replace_edges(*replacement(found[-1], 1000))
            found[-1].validate()
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0].tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("shape", [(1000, 1000), (3, 1_100_000), (70_000, 10)])
def test_many_edges_by_row(shape):
    """More than are sorted without being dealt to blocks of rows, and more columns than eight bytes an edge are for."""
    pattern = Pattern.random(shape, 600_000, generator())
    pattern.validate()
    rows, cols = pattern.edges()
    order = (rows * shape[1] + cols).argsort()
    assert torch.equal(pattern.permutation.long(), order)
    assert torch.equal(pattern.col_indices.long(), cols[order])


def replacement(pattern, count):
    """(pruned, grown_rows, grown_cols), not of a dense matrix."""
    rows, cols = pattern.edges()
    active = set((cols * pattern.shape[0] + rows).tolist())
    keys = [key for key in range(0, pattern.shape[0] * pattern.shape[1], 17) if key not in active][:count]
    grown = torch.tensor(keys)
    pruned = torch.randperm(pattern.nnz, generator=generator())[:count].sort().values
    return pruned, grown % pattern.shape[0], grown // pattern.shape[0]


def test_large_and_sparse_is_fast():
    start = time.process_time()
    pattern = Pattern.random((262_144, 262_144), 2_000_000, generator())
    assert pattern.nnz == 2_000_000
    assert time.process_time() - start < 2  # about 0.1 s; a dense method would take minutes


def test_empty_has_no_content_to_check():
    pattern = Pattern.empty((1000, 2000), 300)
    assert pattern.device.type == "meta"
    assert [tensor.numel() for tensor in pattern.tensors()] == [2001, 300, 1001, 300, 300]
    pattern.validate()
    pattern.ensure_valid()
    twin = Pattern.random((1000, 2000), 300).to("meta")
    for mine, theirs in zip(pattern.tensors(), twin.tensors(), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


BAD_CSC = [
    ([0, 1, 2], [0, 5], r"row_indices\[1\] = 5 is out of range: it must be in \[0, 3\)"),
    ([0, 1, 2], [0, -1], r"row_indices\[1\] = -1 is out of range"),
    ([0, 1, 2], [0, 2**40], r"row_indices\[1\] = 1099511627776 is out of range"),
    ([0, 1, 2], [0, 2**32], r"row_indices\[1\] = 4294967296 is out of range"),
    ([1, 1, 2], [0, 1], r"ccol_indices\[0\] = 1: it must start with 0"),
    ([0, 3, 2], [0, 1], r"ccol_indices\[2\] = 2 after 3: it must not decrease"),
    ([0, 2**32, 2], [0, 1], r"ccol_indices\[2\] = 2 after 4294967296: it must not decrease"),
    ([0, -1, 2], [0, 1], r"ccol_indices\[1\] = -1 after 0: it must not decrease"),
    ([0, 1, 3], [0, 1], r"ccol_indices\[2\] = 3: it must end with the length of row_indices, 2"),
    ([0, 1, 1], [0, 1], r"ccol_indices\[2\] = 1: it must end with the length of row_indices, 2"),
    ([0, 2, 2], [1, 1], r"row_indices\[1\] = 1 is in column 0 twice"),
    ([0, 0, 2], [1, 0], r"row_indices\[1\] = 0 after 1 in column 1: .* must be ascending"),
    ([0, 1], [0], r"ccol_indices must have 3 elements, got 2"),
]


@pytest.mark.parametrize(("ccol", "row", "message"), BAD_CSC)
def test_bad_csc_and_csr_name_argument_position_and_value(ccol, row, message):
    ccol, row = torch.tensor(ccol), torch.tensor(row)
    with pytest.raises(ValueError, match=message):
        Pattern.from_csc((3, 2), ccol, row)
    swapped = message.replace("ccol_", "crow_").replace("row_indices", "col_indices").replace("column", "row")
    with pytest.raises(ValueError, match=swapped.replace("ccol_indices", "crow_indices")):
        Pattern.from_csr((2, 3), ccol, row)


def test_bad_arguments():
    ccol, row = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    for bad in (ccol.float(), ccol.to(torch.uint8), ccol.bool(), [0, 1, 2]):
        with pytest.raises(TypeError, match="ccol_indices must"):
            Pattern.from_csc((3, 2), bad, row)
    with pytest.raises(ValueError, match="row_indices must have 1 dimension"):
        Pattern.from_csc((3, 2), ccol, row.view(1, 2))
    with pytest.raises(ValueError, match="meta"):
        Pattern.from_csc((3, 2), ccol.to("meta"), row.to("meta"))
    with pytest.raises(ValueError, match=r"rows\[1\] = 3 is out of range: it must be in \[0, 3\)"):
        Pattern.from_coo((3, 2), torch.tensor([0, 3]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"cols\[0\] = -2 is out of range: it must be in \[0, 2\)"):
        Pattern.from_coo((3, 2), torch.tensor([0, 2]), torch.tensor([-2, 1]))
    with pytest.raises(ValueError, match=r"\(row 2, column 1\) twice"):
        Pattern.from_coo((3, 2), torch.tensor([2, 0, 2]), torch.tensor([1, 0, 1]))
    with pytest.raises(ValueError, match="rows has 1 elements, cols 2"):
        Pattern.from_coo((3, 2), torch.tensor([2]), torch.tensor([1, 0]))
    for nnz in (-1, 7):
        with pytest.raises(ValueError, match=rf"nnz = {nnz} is out of range: it must be in \[0, 6\]"):
            Pattern.random((3, 2), nnz)
    with pytest.raises(ValueError, match="shape has 2147483648 cols"):
        Pattern.random((3, 2**31), 5)
    with pytest.raises(TypeError, match="shape must be"):
        Pattern.random(3, 5)
    with pytest.raises(ValueError, match="mask must have 2 dimensions"):
        Pattern.from_mask(torch.ones(3))
    with pytest.raises(TypeError, match="from_csc"):
        Pattern()


@pytest.mark.parametrize("place", range(5))
def test_every_changed_index_is_found(place, pointers):
    """Every single change of a small pattern's arrays, stored or derived, makes it an invalid one."""
    good = Pattern.random((5, 4), 9, generator(1))
    for position in range(good.tensors()[place].numel()):
        for value in (-1, 0, 1, 3, 4, 5, 8, 9, 100):
            tensors = [tensor.clone() for tensor in good.tensors()]
            unchanged = int(tensors[place][position]) == value
            tensors[place][position] = value
            changed = Pattern.from_buffers(good.shape, *tensors)
            if unchanged:
                changed.validate()
            else:
                with pytest.raises(ValueError, match=r"(_indices|permutation)\[\d\] = "):
                    changed.validate()


def test_storage_checks():
    good = Pattern.random((5, 4), 9, generator())
    names = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "permutation")
    for place, name in enumerate(names):

        def changed(change, place=place):
            tensors = list(good.tensors())
            tensors[place] = change(tensors[place])
            return tensors

        with pytest.raises(TypeError, match=name):
            check_tensors(*changed(torch.Tensor.float))
        with pytest.raises(ValueError, match=f"{name} must be contiguous"):
            check_tensors(*changed(lambda t: t.repeat_interleave(2)[::2]))
        with pytest.raises(ValueError, match=f"{name} must be contiguous|elements"):
            check_tensors(*changed(lambda t: t.view(1, -1)))
        with pytest.raises(ValueError, match=r"_indices|permutation"):
            check_tensors(*changed(lambda t: t[:-1]))
    with pytest.raises(TypeError, match="crow_indices must have ccol_indices' dtype"):
        check_tensors(good.tensors()[0], good.tensors()[1], good.crow_indices.long(), *good.tensors()[3:])
    with pytest.raises(TypeError, match=r"row_indices must have dtype torch.int32"):
        check_csc(good.ccol_indices, good.row_indices.long(), 5)
    with pytest.raises(ValueError, match=r"row_indices' device|ccol_indices' device"):
        check_csc(good.ccol_indices.to("meta"), good.row_indices, 5)


class Counted:
    """Counts the full checks that happen."""

    def __init__(self, monkeypatch):
        self.count = 0
        topology = topology_of(torch.device("cpu"))
        real = topology.check_compressed

        def check(*arguments):
            self.count += 1
            return real(*arguments)

        monkeypatch.setattr(topology, "check_compressed", check)


def test_content_is_checked_once_and_again_after_any_change(monkeypatch):
    counted = Counted(monkeypatch)
    pattern = Pattern.random((50, 40), 300, generator())
    for _ in range(3):
        pattern.ensure_valid()
        check_tensors(*pattern.tensors())
        check_csc(pattern.ccol_indices, pattern.row_indices, 50)
    assert counted.count == 0  # right by construction
    view = Pattern.from_buffers(pattern.shape, *pattern.tensors())
    view.ensure_valid()
    assert counted.count == 0

    for twin in (copy.deepcopy(pattern.tensors()), pickle.loads(pickle.dumps(pattern.tensors()))):
        before = counted.count
        check_tensors(*twin)
        check_tensors(*twin)
        assert counted.count == before + 2  # one CSC and one CSR check

    with pytest.raises(ValueError, match="row_indices"):
        check_csc(pattern.ccol_indices, pattern.row_indices, 20)  # valid for other numbers of rows only
    pattern.row_indices[0] += 0
    before = counted.count
    pattern.ensure_valid()
    assert counted.count == before + 2
    pattern.row_indices[3] = 1000
    for _ in range(2):
        with pytest.raises(ValueError, match="row_indices"):
            pattern.ensure_valid()
        with pytest.raises(ValueError, match="row_indices"):
            check_csc(pattern.ccol_indices, pattern.row_indices, 50)


def test_swapped_storage_is_noticed():
    pattern = Pattern.random((50, 40), 300, generator())
    pattern.ensure_valid()
    pattern.row_indices.data = torch.full((300,), 77, dtype=torch.int32)
    with pytest.raises(ValueError, match="row_indices"):
        pattern.ensure_valid()


def test_registry_forgets_dead_tensors():
    patterns = [Pattern.random((5, 4), 9).clone() for _ in range(50)]
    whole = {id(pattern.permutation) for pattern in patterns}
    pairs = {id(pattern.row_indices) for pattern in patterns}
    assert whole <= pattern_module._checked_patterns.entries.keys()
    assert pairs <= pattern_module._checked_pairs.entries.keys()
    del patterns
    gc.collect()
    assert not whole & pattern_module._checked_patterns.entries.keys()
    assert not pairs & pattern_module._checked_pairs.entries.keys()


def test_inference_tensors_are_checked_every_time(monkeypatch):
    with torch.inference_mode():
        pattern = Pattern.random((5, 4), 9, generator())
        pattern.ensure_valid()
        pattern.row_indices[0] = 99
        with pytest.raises(ValueError, match="row_indices"):
            pattern.ensure_valid()


def test_pickles_and_deepcopies():
    pattern = Pattern.random((50, 40), 300, generator())
    file = io.BytesIO()
    torch.save(pattern.tensors(), file)
    file.seek(0)
    for twin in (
        copy.deepcopy(pattern),
        pickle.loads(pickle.dumps(pattern)),
        Pattern.from_buffers(pattern.shape, *torch.load(file)),
    ):
        twin.ensure_valid()
        assert twin.equal(pattern)
        assert twin.row_indices.data_ptr() != pattern.row_indices.data_ptr()


# -- replacing edges


@pytest.mark.parametrize("shape", [(6, 5), (1, 30), (30, 1), (40, 50), (90, 120)])
def test_replace_edges_matches_sets(shape, pointers):
    rng = np.random.default_rng(0)
    total = shape[0] * shape[1]
    for trial in range(10):
        nnz = int(rng.integers(1, total))
        pattern = Pattern.random(shape, nnz, generator(trial))
        old = list(zip(*(side.tolist() for side in pattern.edges()), strict=True))
        inactive = np.array(sorted(set(range(total)) - {c * shape[0] + r for r, c in old}))
        count = int(rng.integers(0, min(nnz, len(inactive)) + 1))
        pruned = torch.from_numpy(np.sort(rng.choice(nnz, count, replace=False)))
        keys = torch.from_numpy(rng.choice(inactive, count, replace=False))
        addresses = [tensor.data_ptr() for tensor in pattern.tensors()]

        source = pattern.replace_edges(pruned, keys % shape[0], keys // shape[0])

        gone = set(pruned.tolist())
        kept = {edge for k, edge in enumerate(old) if k not in gone}
        grown = {(int(key % shape[0]), int(key // shape[0])) for key in keys}
        mask = np.zeros(shape, dtype=bool)
        for row, col in kept | grown:
            mask[row, col] = True
        assert [tensor.data_ptr() for tensor in pattern.tensors()] == addresses
        assert pattern.nnz == nnz
        pattern.ensure_valid()
        pattern.validate()
        assert torch.equal(pattern.to_mask(), torch.from_numpy(mask))
        new = list(zip(*(side.tolist() for side in pattern.edges()), strict=True))
        for edge, slot in zip(new, source.tolist(), strict=True):
            assert (slot == -1) == (edge in grown)
            assert slot == -1 or old[slot] == edge


def test_bad_replacements_leave_the_pattern_as_it_was():
    pattern = Pattern.from_coo((4, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    twin = pattern.clone()

    def replace(pruned, rows, cols):
        pattern.replace_edges(torch.tensor(pruned), torch.tensor(rows), torch.tensor(cols))

    for arguments, message in (
        (([0], [1], [1]), r"\(row 1, column 1\): it is an edge already"),
        (([0], [0], [0]), r"\(row 0, column 0\): it is an edge already"),  # also where it is pruned
        (([0, 1], [3, 3], [0, 0]), r"\(row 3, column 0\) twice"),
        (([0], [4], [0]), r"grown_rows\[0\] = 4 is out of range"),
        (([0], [0], [-1]), r"grown_cols\[0\] = -1 is out of range"),
        (([3], [3], [0]), r"pruned must hold ascending, distinct slots in \[0, 3\)"),
        (([-1], [3], [0]), "pruned must hold"),
        (([1, 0], [3, 3], [0, 1]), "pruned must hold"),
        (([1, 1], [3, 3], [0, 1]), "pruned must hold"),
        (([0, 1], [3], [0]), "got 1 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(*arguments)
        assert pattern.equal(twin)
    with pytest.raises(TypeError, match="pruned must have dtype"):
        pattern.replace_edges(torch.tensor([0.0]), torch.tensor([3]), torch.tensor([0]))
    pattern.row_indices[0] = 9
    with pytest.raises(ValueError, match=r"row_indices\[0\] = 9"):
        replace([0], [3], [0])


def test_copy_takes_content_and_check():
    pattern, other = Pattern.random((9, 8), 20, generator(1)), Pattern.random((9, 8), 20, generator(2))
    row = pattern.row_indices
    pattern.copy_(other)
    assert pattern.equal(other)
    assert pattern.row_indices is row
    pattern.validate()
    with pytest.raises(ValueError, match="expected shape"):
        pattern.copy_(Pattern.random((9, 8), 21))


# -- generated input

SIZES = st.integers(0, 5)
VALUES = st.one_of(st.integers(-2, 12), st.sampled_from([-(2**31), 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**62]))


@st.composite
def compressed(draw):
    """A compressed pair: good, good with one value changed, or anything."""
    major, minor = draw(SIZES), draw(SIZES)
    kind = draw(st.sampled_from(["good", "changed", "any"]))
    if kind == "any":
        pointers = draw(st.lists(VALUES, max_size=7))
        indices = draw(st.lists(VALUES, max_size=8))
    else:
        keys = sorted(draw(st.sets(st.integers(0, max(0, major * minor - 1)), max_size=12)) if major * minor else [])
        pointers = [sum(key // minor < i for key in keys) for i in range(major + 1)]
        indices = [key % minor for key in keys]
        if kind == "changed":
            target = draw(st.sampled_from([pointers, indices])) if indices else pointers
            target[draw(st.integers(0, len(target) - 1))] = draw(VALUES)
    return major, minor, pointers, indices


def is_good(major, minor, pointers, indices):
    if len(pointers) != major + 1 or pointers[0] != 0 or pointers[-1] != len(indices):
        return False
    if any(a > b for a, b in itertools.pairwise(pointers)):
        return False
    runs = [indices[a:b] for a, b in itertools.pairwise(pointers)]
    return all(all(0 <= i < minor for i in run) and run == sorted(set(run)) for run in runs)


@settings(max_examples=5000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(compressed(), st.booleans())
def test_generated_input_is_right_or_raises(given_input, by_row):
    major, minor, pointers, indices = given_input
    shape = (major, minor) if by_row else (minor, major)
    construct = Pattern.from_csr if by_row else Pattern.from_csc
    tensors = torch.tensor(pointers, dtype=torch.int64), torch.tensor(indices, dtype=torch.int64)
    if not is_good(major, minor, pointers, indices):
        with pytest.raises(ValueError, match="indices"):
            construct(shape, *tensors)
        return
    mask = np.zeros((major, minor), dtype=bool)
    for i, (begin, end) in enumerate(itertools.pairwise(pointers)):
        mask[i, indices[begin:end]] = True
    assert_is(construct(shape, *tensors), mask if by_row else mask.T)
