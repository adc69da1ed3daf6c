"""Topology in plain torch, on any device: what works without the host, and what the extension is compared with."""

from sparsekern.backends.topology._reference_arrays import (
    check_compressed,
    check_transpose,
    first_present,
    same_edges,
    sorted_keys,
    transpose,
    unpack_checked,
    unpack_keys,
)
from sparsekern.backends.topology._reference_draws import distinct_below, draw_uniform, draw_weighted, signs
from sparsekern.backends.topology._reference_moves import (
    all_finite,
    exchange,
    mark_by_magnitude,
    mark_candidates,
    mark_positions,
    move_values,
    select_by_magnitude,
    sources,
)
from sparsekern.backends.topology._reference_sums import signed_sums, sum_magnitudes, window_sums

__all__ = [
    "all_finite",
    "check_compressed",
    "check_transpose",
    "distinct_below",
    "draw_uniform",
    "draw_weighted",
    "exchange",
    "first_present",
    "mark_by_magnitude",
    "mark_candidates",
    "mark_positions",
    "move_values",
    "same_edges",
    "select_by_magnitude",
    "signed_sums",
    "signs",
    "sorted_keys",
    "sources",
    "sum_magnitudes",
    "transpose",
    "unpack_checked",
    "unpack_keys",
    "window_sums",
]
