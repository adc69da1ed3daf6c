"""Where a network's forward and backward spend their time, by kind of operator."""

from __future__ import annotations

from collections.abc import Callable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first kind one of whose words is in an operator's name takes it.
KINDS = {
    "sparse products": ("sparsekern::linear", "sparsekern::conv2d"),
    "norms": ("norm",),
    "attention": ("scaled_dot_product", "attention", "softmax"),
    "activations": ("relu", "gelu", "threshold"),
    "dense products": ("mm", "convolution", "linear", "matmul"),
    "copies and sums": ("copy", "clone", "cat", "add", "sum", "mean", "fill", "zero"),
}
OTHER = "other"


def shares(step: Callable[[], object]) -> dict[str, float]:
    """The share of each kind in the time of a call's operators, 1 together; profiled once, after a warm-up."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    times = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:
            times[kind(event.key)] += event.self_cpu_time_total
    together = sum(times.values())
    return {name: round(time / together, 4) for name, time in times.items()}


def kind(operator: str) -> str:
    """The kind that an operator's name belongs to."""
    for name, words in KINDS.items():
        if any(word in operator.lower() for word in words):
            return name
    return OTHER
