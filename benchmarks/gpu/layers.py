"""Single layers on a GPU: each product alone, the training step with its optimizer, its memory, and the crossover."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import cases, ways
from benchmarks.gpu.cases import PRODUCTS, Problem
from benchmarks.gpu.clock import Call, Clock, Fault, Measured, OutOfTime, first_line, interleaved, is_fatal
from benchmarks.gpu.options import Gpu
from benchmarks.gpu.ways import CSR, DENSE, OURS, TOLERANCES, Way
from benchmarks.libraries.candidate import largest_error
from benchmarks.shapes import Shape
from benchmarks.speed import BreakEven

PARTS = ("forward", "backward", "optimizer")
OPTIMIZERS = ("Adam", "SGD")
CHECKING = 0.6  # of the time that is left; the rest is for the rounds
LONGEST = 0.25  # seconds of a step; what takes longer is noted and not timed
MASKED_SPARSITY = 90.0  # its time is the same at any
CSR_SPARSITIES = (90.0, 95.0, 99.0, 99.9)
PRECISIONS = ("float32", "TF32", "bfloat16", "float16")
OUR_PRECISIONS = ("float32", "bfloat16", "float16")
HALF = ("float32", "bfloat16")
# Against what a way's time is held: its own arithmetic's dense, and for float32 TF32 beside it.
AGAINST = {"float32": ("float32", "TF32"), "bfloat16": ("bfloat16",), "float16": ("float16",)}


def measure(
    shapes: Sequence[Shape], options: Gpu, device: torch.device, clock: Clock, deadline: float
) -> Iterator[dict[str, Any]]:
    """One entry a layer, as each is done; what the time does not suffice for has a note instead of results."""
    for shape in shapes:
        if time.monotonic() > deadline:
            yield {"layer": shape.name, "results": [], "notes": ["not measured: the time was over"]}
            continue
        torch.manual_seed(options.seed)
        began = time.monotonic()
        entry = measure_layer(shape, options, device, clock, deadline)
        yield entry | {"seconds": round(time.monotonic() - began, 1)}
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_layer(shape: Shape, options: Gpu, device: torch.device, clock: Clock, deadline: float) -> dict[str, Any]:
    layer = cases.dense_layer(shape, device)
    notes: list[str] = []
    admitted: list[tuple[Way, float]] = []
    now = time.monotonic()
    checked_until = now + CHECKING * (deadline - now)
    for make in makers(shape, layer, options, device, notes):
        if time.monotonic() > checked_until:
            notes.append("the time was over before every way had been checked")
            break
        try:
            made = make()
        except Exception as failure:
            if is_fatal(failure):
                raise
            notes.append(f"ways that could not be made ({type(failure).__name__}: {first_line(failure)})")
            continue
        for way in made:
            print(f"checking {way.label} of {shape.name}", file=sys.stderr, flush=True)
            admitted += [(way, error) for error in admit(way, shape, layer, device, notes)]
        del made
    print(f"timing {len(admitted)} ways of {shape.name}", file=sys.stderr, flush=True)
    entry = {
        "layer": shape.name,
        "kind": "linear" if isinstance(layer, nn.Linear) else "conv",
        "weight": list(layer.weight.shape),
        "results": [],
        "notes": notes,
    }
    try:
        entry["results"] = timed(admitted, shape, layer, options, device, clock, deadline, notes)
    except OutOfTime as error:
        notes.append(str(error))
    return entry | {"break_even": break_evens(entry["results"])}


def makers(
    shape: Shape, layer: nn.Linear | nn.Conv2d, options: Gpu, device: torch.device, notes: list[str]
) -> Iterator[Callable[[], list[Way]]]:
    """What makes the ways, sparsity by sparsity, dense first; the sparsest next, which are the quickest to check."""

    def problem(sparsity: float | None) -> Problem:
        return Problem.of(shape, layer, sparsity)

    yield lambda: ways.dense_ways(problem(None), PRECISIONS)
    yield lambda: ways.masked_ways(problem(MASKED_SPARSITY), HALF)
    backends = ways.serving(device, options.backends)
    missing = [name for name in options.backends if name not in backends]
    notes += [f"backend {name} cannot take tensors on {device.type}" for name in missing]
    for sparsity in sorted((each for each in options.sparsity if each >= shape.lowest), reverse=True):
        at = cache(partial(problem, sparsity))  # one mask for all ways

        def own(at: Callable[[], Problem] = at) -> list[Way]:
            made, unserved = ways.our_ways(at(), OUR_PRECISIONS, backends)
            notes.extend(note for note in unserved if note not in notes)
            return made

        yield own
        if sparsity in CSR_SPARSITIES:
            yield lambda at=at: ways.csr_ways(at(), HALF)


def admit(way: Way, shape: Shape, layer: nn.Linear | nn.Conv2d, device: torch.device, notes: list[str]) -> list[float]:
    """The way's largest error where it may be timed; nothing, and a note, where it is wrong, fails or is too slow."""
    try:
        x, grad = (way.taken(tensor) for tensor in cases.draw(shape, layer, device))
        expected = expected_results(way, shape, layer, x, grad)
        error = max(largest_error(found, expected) for found in way.results(x, grad))
        del expected
        began = time.perf_counter()
        with way.context():
            way.forward(x.requires_grad_()).backward(grad)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        way.forget_gradients()
    except Exception as failure:
        if is_fatal(failure):
            raise Fault(failure, way.backend, way.label) from failure
        notes.append(f"{way.label}: failed, not timed ({type(failure).__name__}: {first_line(failure)})")
        return []
    if not error <= TOLERANCES[way.precision]:
        notes.append(f"{way.label}: WRONG by {error:.1e} of the largest element, not timed")
        return []
    if took > LONGEST:
        notes.append(f"{way.label}: a step takes {took:.2f} s, not timed")
        return []
    return [error]


def expected_results(way: Way, shape: Shape, layer: nn.Linear | nn.Conv2d, x: Tensor, grad: Tensor) -> Any:
    """In float64 and at once rounded to float32, by which errors are told: half the memory."""
    problem = Problem(shape, layer, way.sparsity, way.mask, None)
    return tuple(result.float() for result in problem.expected(x, grad))


def timed(
    admitted: list[tuple[Way, float]],
    shape: Shape,
    layer: nn.Linear | nn.Conv2d,
    options: Gpu,
    device: torch.device,
    clock: Clock,
    deadline: float,
    notes: list[str],
) -> list[dict[str, Any]]:
    """A row for each way: all its products and steps in the same rounds as everybody's."""
    peaks: dict[str, dict[str, int | None]] = {}
    calls: dict[str, Callable[[Any], Call]] = {}
    backends: dict[str, str | None] = {}
    for way, _ in admitted:
        try:
            optimizers = ways.optimizers(way.parameters)
            peaks[way.label] = step_bytes(way, optimizers["Adam"], shape, layer, device, clock)
        except Exception as failure:
            if is_fatal(failure):
                raise Fault(failure, way.backend, way.label) from failure
            notes.append(f"{way.label}: no step, not timed ({type(failure).__name__}: {first_line(failure)})")
            continue
        for product in PRODUCTS:
            calls[f"{way.label}: {product}"] = partial(product_call, way, product)
        for name, optimizer in optimizers.items():
            calls[f"{way.label}: {name}"] = partial(step_call, way, optimizer)
        backends |= {f"{way.label}: {name}": way.backend for name in (*PRODUCTS, *OPTIMIZERS)}
    times, failed = interleaved(
        clock,
        lambda _: Inputs(*cases.draw(shape, layer, device)),
        calls,
        options.rounds,
        deadline,
        backends=backends,
    )
    notes += failed
    rows = []
    for way, error in admitted:
        found = {name: times.get(f"{way.label}: {name}") for name in (*PRODUCTS, *OPTIMIZERS)}
        if None not in found.values():
            rows.append(row(way, error, found, peaks[way.label]))
    return rows


class Inputs:
    """A round's input and output gradient, once in each dtype and layout that somebody takes."""

    def __init__(self, x: Tensor, grad: Tensor) -> None:
        self._given, self._taken = (x, grad), {}

    def of(self, way: Way) -> tuple[Tensor, Tensor]:
        key = way.dtype, way.layout
        if key not in self._taken:
            self._taken[key] = tuple(way.taken(tensor) for tensor in self._given)
        return self._taken[key]


def product_call(way: Way, product: str, inputs: Inputs) -> Call:
    x, grad = inputs.of(way)
    return Call([lambda: way.products[product](x, grad)], way.context)


def step_call(way: Way, optimizer: torch.optim.Optimizer, inputs: Inputs) -> Call:
    given, grad = inputs.of(way)
    x = given.detach().requires_grad_()
    way.forget_gradients()
    held: list[Tensor] = []
    return Call(
        [lambda: held.append(way.forward(x)), lambda: held.pop().backward(grad), optimizer.step],
        way.context,
    )


def step_bytes(
    way: Way,
    optimizer: torch.optim.Optimizer,
    shape: Shape,
    layer: nn.Linear | nn.Conv2d,
    device: torch.device,
    clock: Clock,
) -> dict[str, int | None]:
    """Bytes that the way holds (parameters, indices, Adam's state), and on top at a step's most, without the input."""
    inputs = Inputs(*cases.draw(shape, layer, device))
    inputs.of(way)
    peak = None
    for _ in range(2):  # the first makes the optimizer's state
        peak = clock.peak(step_call(way, optimizer, inputs))
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    way.forget_gradients()
    return {"held": sum(tensor.nbytes for tensor in (*way.parameters, *way.held, *state)), "peak": peak}


def row(way: Way, error: float, found: dict[str, Measured], memory: dict[str, int | None]) -> dict[str, Any]:
    return {
        "way": way.name,
        "family": way.family,
        "precision": way.precision,
        "backend": way.backend,
        "sparsity": way.sparsity,
        "edges": way.edges,
        "max_relative_error": error,
        "products_ms": {product: found[product].total.as_dict() for product in PRODUCTS},
        "products_host_ms": {product: found[product].host.median for product in PRODUCTS},
        "steps_ms": {
            name: {
                "total": found[name].total.as_dict(),
                **{part: times.median for part, times in zip(PARTS, found[name].parts, strict=True)},
                "host": found[name].host.median,
            }
            for name in OPTIMIZERS
        },
        "bytes": memory,
    }


def best_dense(rows: list[dict[str, Any]], precision: str, what: str) -> float | None:
    """Milliseconds of the fastest dense of this precision; `what` is a product or an optimizer's name."""
    times = [milliseconds(each, what) for each in rows if each["family"] == DENSE and each["precision"] == precision]
    return min(times, default=None)


def milliseconds(each: dict[str, Any], what: str) -> float:
    return (each["products_ms"][what] if what in PRODUCTS else each["steps_ms"][what]["total"])["median"]


def speeds(rows: list[dict[str, Any]], way: str, against: str, what: str) -> dict[float, float]:
    """How many times faster than the best dense of a precision, by sparsity."""
    dense = best_dense(rows, against, what)
    if dense is None:
        return {}
    return {each["sparsity"]: dense / milliseconds(each, what) for each in rows if each["way"] == way}


def break_evens(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From which sparsity on the step with Adam beats the best dense one, for each sparse way."""
    found = []
    for name, precision in dict.fromkeys(
        (each["way"], each["precision"]) for each in rows if each["family"] in (OURS, CSR)
    ):
        for against in AGAINST[precision]:
            if by_sparsity := speeds(rows, name, against, "Adam"):
                even = BreakEven.of(by_sparsity).as_dict()
                found.append({"way": name, "precision": precision, "against": against, **even})
    return found
