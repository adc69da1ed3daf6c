"""Layer densities: exact totals, the published formulas, and what clipping at density 1 redistributes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern.densities import DISTRIBUTIONS, layer_densities, layer_nnz

RESNET = [
    (16, 3, 3, 3),
    *[(16, 16, 3, 3)] * 6,
    (32, 16, 3, 3),
    *[(32, 32, 3, 3)] * 5,
    (64, 32, 3, 3),
    (10, 64),
]

shape_strategy = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 7), st.integers(1, 7)),
)


@settings(max_examples=300, deadline=None)
@given(
    shapes=st.lists(shape_strategy, min_size=1, max_size=12),
    density=st.floats(1e-4, 1.0),
    distribution=st.sampled_from(sorted(DISTRIBUTIONS)),
)
def test_total_is_exact_and_every_layer_within_its_size(shapes, density, distribution):
    sizes = [math.prod(shape) for shape in shapes]
    total = round(density * sum(sizes))
    if total < len(shapes):
        with pytest.raises(ValueError, match="one each"):
            layer_nnz(shapes, density, distribution)
        return
    counts = layer_nnz(shapes, density, distribution)
    assert sum(counts) == total
    assert all(1 <= nnz <= size for nnz, size in zip(counts, sizes, strict=True))


def published_erk(shapes, density):
    """RigL's procedure, in floats: layers over 1 are fixed at 1, the rest rescaled, until none passes 1."""
    full = set()
    while True:
        raw = [sum(shape) / math.prod(shape) for shape in shapes]
        free = [i for i in range(len(shapes)) if i not in full]
        target = density * sum(math.prod(s) for s in shapes) - sum(math.prod(shapes[i]) for i in full)
        epsilon = target / sum(raw[i] * math.prod(shapes[i]) for i in free)
        over = [i for i in free if epsilon * raw[i] > 1]
        if not over:
            return [1.0 if i in full else epsilon * raw[i] for i in range(len(shapes))]
        full.update(over)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.3, 0.6, 0.9])
def test_erk_is_rigl_procedure(density):
    expected = published_erk(RESNET, density)
    for nnz, shape, value in zip(layer_nnz(RESNET, density, "erk"), RESNET, expected, strict=True):
        assert abs(nnz - value * math.prod(shape)) < 1


def test_er_is_proportional_to_the_sum_of_the_matrix_sides():
    shapes = [(1000, 2000), (4000, 1000), (64, 128, 3, 3)]
    counts = layer_nnz(shapes, 0.01, "er")
    shares = [3000, 5000, 64 + 1152]
    factor = sum(counts) / sum(shares)
    for nnz, share in zip(counts, shares, strict=True):
        assert abs(nnz - factor * share) < 1


def test_what_a_full_layer_cannot_take_goes_to_the_others_in_proportion():
    # Shares 4 : 200 : 400 of 0.3 * 50004 = 15001; the 2x2 layer takes its 4, the rest splits 1 : 2.
    assert layer_nnz([(2, 2), (100, 100), (200, 200)], 0.3, "er") == [4, 4999, 9998]


def test_uniform_has_the_same_density_everywhere():
    assert layer_densities([(10, 10), (20, 20), (40, 10, 5, 5)], 0.05, "uniform") == [0.05, 0.05, 0.05]


def test_a_grouped_convolution_counts_its_own_weights():
    assert layer_nnz([(32, 1, 3, 3), (64, 32)], 1.0, "er") == [288, 2048]
    assert sum(layer_nnz([(32, 1, 3, 3), (64, 32)], 0.5, "erk")) == 1168


def test_huge_layers_stay_exact():
    side = 262_144
    counts = layer_nnz([(side, side), (side, 2 * side), (side, side)], 1e-5, "er")
    assert sum(counts) == round(1e-5 * 4 * side * side)


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_density_outside_its_range(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        layer_nnz([(4, 4)], density)


def test_other_bad_arguments():
    with pytest.raises(TypeError, match="density must be a number"):
        layer_nnz([(4, 4)], "0.5")
    with pytest.raises(TypeError, match="density must be a number"):
        layer_nnz([(4, 4)], True)
    with pytest.raises(ValueError, match="er, erk, uniform, got 'magnitude'"):
        layer_nnz([(4, 4)], 0.5, "magnitude")
    with pytest.raises(ValueError, match=r"got \(4, 0\)"):
        layer_nnz([(4, 0)], 0.5)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        layer_nnz([(4,)], 0.5)
