"""One layer's training step (forward and both gradients) against dense and other sparse libraries.

    python -m benchmarks.layer_step --threads 1

Public modules under autograd; each library's results are compared with dense before anything is timed, and
one that differs is reported and left out. Peers are optional:

    pip install --no-build-isolation torch==<yours> sparseprop
    pip install torch==<yours> sparselab

Writes benchmarks/results/layer_step_<threads>_threads.json, and the same as a page (.md).
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.layers import Candidate

DENSITIES = (0.7, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
TOLERANCE = 1e-4  # of the largest element; float32 sums of some thousand products
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    options = _options()
    # SparseProp brings an OpenMP runtime of its own, which reads this when it is loaded.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch

    from benchmarks import machine

    torch.set_num_threads(options.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    report: dict[str, Any] = {
        "benchmark": "layer_step",
        "machine": machine.describe(),
        "threads": options.threads,
        "seed": options.seed,
        "rounds": options.rounds,
        "layers": [],
    }
    for make in (_linear, _conv):
        torch.manual_seed(options.seed)
        name, dense, sample = make()
        if options.layer in name:
            result = _measure(name, dense, sample, options.densities, options.rounds)
            report["layers"].append(result)
            print(_table(result), flush=True)
    path = options.output or RESULTS / f"layer_step_{options.threads}_threads.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(_page(report))
    print(f"written to {path} and {path.with_suffix('.md').name}")


def _linear() -> tuple[str, nn.Module, Callable[[], Tensor]]:
    import torch

    return "linear 768->3072, 2048 tokens", torch.nn.Linear(768, 3072), lambda: torch.randn(2048, 768)


def _conv() -> tuple[str, nn.Module, Callable[[], Tensor]]:
    import torch

    layer = torch.nn.Conv2d(128, 128, 3, padding=1)
    return "conv 128->128 3x3, 64x16x16", layer, lambda: torch.randn(64, 128, 16, 16)


def _measure(
    name: str, dense: nn.Module, sample: Callable[[], Tensor], densities: list[float], rounds: int
) -> dict[str, Any]:
    """Every candidate at every density, timed in the same rounds as dense."""
    import torch

    from benchmarks import layers
    from benchmarks.timing import interleaved

    notes: list[str] = []
    candidates: dict[str, tuple[Candidate, float]] = {}
    errors: dict[str, float] = {}

    def admit(candidate: Candidate, density: float, label: str) -> None:
        errors[label] = _error(_results(candidate, x), expected)
        if errors[label] > TOLERANCE:
            notes.append(f"{label}: wrong by {errors[label]:.1e} of the largest element, not timed")
        else:
            candidates[label] = (candidate, density)

    for density in densities:
        mask = torch.rand(dense.weight.shape) < density
        x = sample()
        reference, *others = layers.dense_layers(dense, mask)
        expected = _results(reference, x)
        if not candidates:  # dense takes the same time whatever is zero
            for candidate in (reference, *others):
                admit(candidate, 1.0, candidate.name)
        libraries, skipped = layers.peers(dense, mask)
        notes += [line for line in skipped if line not in notes]
        for candidate in (layers.sparsekern_layer(dense, mask), *libraries):
            admit(candidate, density, f"{candidate.name} @{density:g}")

    def make_inputs(_: int) -> tuple[Tensor, Tensor]:
        return sample(), torch.randn(expected[0].shape)

    calls = {label: _step(candidate) for label, (candidate, _) in candidates.items()}
    timings = interleaved(make_inputs, calls, rounds)
    rows = [
        {
            "candidate": candidate.name,
            "density": density,
            "max_relative_error": errors[label],
            "ms": timings[label].as_dict(),
        }
        for label, (candidate, density) in candidates.items()
    ]
    return {"layer": name, "results": rows, "notes": notes}


def _step(candidate: Candidate) -> Callable[[tuple[Tensor, Tensor]], Callable[[], object]]:
    def prepare(inputs: tuple[Tensor, Tensor]) -> Callable[[], object]:
        x, grad = (_laid_out(tensor, candidate) for tensor in inputs)
        x.requires_grad_()
        _forget_gradients(candidate)
        return lambda: candidate.forward(x).backward(grad)

    return prepare


def _laid_out(tensor: Tensor, candidate: Candidate) -> Tensor:
    return tensor.clone(memory_format=candidate.layout)


def _forget_gradients(candidate: Candidate) -> None:
    for parameter in candidate.parameters:
        parameter.grad = None


def _results(candidate: Candidate, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient and weight gradient at the edges, for a gradient that is always the same."""
    import torch

    _forget_gradients(candidate)
    x = _laid_out(x, candidate).requires_grad_()
    y = candidate.forward(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y.backward(_laid_out(grad, candidate))
    return y.detach(), x.grad, candidate.edge_grad().detach().clone()


def _error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    pairs = zip(actual, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _table(result: dict[str, Any]) -> str:
    """Markdown: medians in ms, a row per density and a column per library, and how often faster than dense."""
    rows = result["results"]
    dense = {row["candidate"]: row["ms"]["median"] for row in rows if row["density"] == 1.0}
    default, best = next(iter(dense.values())), min(dense.values())
    names = list(dict.fromkeys(row["candidate"] for row in rows if row["density"] < 1.0))
    header = ["density", *names, "best dense / sparsekern", "default dense / sparsekern"]
    cells = [header, ["---:"] * len(header)]
    for density in dict.fromkeys(row["density"] for row in rows if row["density"] < 1.0):
        ms = {row["candidate"]: row["ms"]["median"] for row in rows if row["density"] == density}
        ratios = [f"{time / ms['sparsekern']:.2f}" if "sparsekern" in ms else "-" for time in (best, default)]
        cells.append([f"{density:g}", *(f"{ms[name]:.2f}" if name in ms else "-" for name in names), *ratios])
    lines = [
        f"### {result['layer']}",
        "",
        "Dense, ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in dense.items()) + " (the first is the default).",
        "",
        *("| " + " | ".join(row) + " |" for row in cells),
        *(f"\n{note}." for note in result["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _page(report: dict[str, Any]) -> str:
    where = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return "\n".join(
        [
            "## One layer's training step",
            "",
            f"Forward, input and weight gradient, float32, {report['threads']} thread(s) of {where['processor']} "
            f"({where['torch_capability']}); medians in ms of {report['rounds']} interleaved rounds on fresh inputs; "
            f"commit {where['commit']}; {versions}.",
            "",
            *map(_table, report["layers"]),
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_step", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of torch and of every library (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds; medians are reported (default 15)")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES, help="shares of nonzero weights")
    parser.add_argument("--layer", choices=("linear", "conv", ""), default="", help="one layer only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the .json file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
