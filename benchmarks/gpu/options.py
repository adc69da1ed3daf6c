"""The options of `python -m benchmarks gpu`, read without tyro, which a GPU machine's own Python may lack."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import RESULTS, ROOT

# In the order of their value, should the time run out.
SECTIONS = ("layers", "networks", "ceilings", "convolutions", "counters")
SPARSITIES = (80.0, 90.0, 95.0, 97.0, 98.0, 99.0, 99.5, 99.9)
SMOKE_SPARSITIES = (80.0, 95.0)
SMOKE_OUTPUT = ROOT / "build" / "gpu-smoke"


@dataclass(frozen=True)
class Gpu:
    """Layers, networks and the machine's ceilings on a GPU, each section in a file of its own.

    Every candidate's results are compared with a dense product in float64 before it is timed; what differs is noted and
    left out. Times are the GPU's own, of calls that wait in its queue, with a second-level cache that holds none of the
    operands; medians of rounds in which every candidate ran once.
    """

    device: str = "cuda"
    sections: tuple[str, ...] = SECTIONS
    budget: float = 300.0
    rounds: int = 9
    sparsity: tuple[float, ...] = SPARSITIES
    backends: tuple[str, ...] = ()
    seed: int = 0
    smoke: bool = False
    commit: str | None = None
    output: Path | None = None


def parse(arguments: Sequence[str], prog: str = "python -m benchmarks gpu") -> Gpu:
    """The options of a command line; leaves the process (code 2) with a message where they cannot be read."""
    parser = argparse.ArgumentParser(prog, description=Gpu.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--device", default=Gpu.device, choices=("cuda", "cpu"), help="cpu only rehearses, with --smoke")
    add("--sections", nargs="+", default=SECTIONS, choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    add("--budget", type=float, default=Gpu.budget, help="seconds for all sections together; what is left is left out")
    add("--rounds", type=int, default=Gpu.rounds, help="timed rounds, at least 3; medians are reported")
    add("--sparsity", type=float, nargs="+", default=None, help="shares of zero weights, in percent")
    add("--backends", nargs="+", default=(), help="of sparsekern's; by default all that serve the device")
    add("--seed", type=int, default=Gpu.seed, help="of weights, masks and inputs")
    add("--smoke", action="store_true", help="tiny shapes and few rounds: does everything run?")
    add("--commit", default=None, help="of the sources, where they lie outside of a checkout")
    add("--output", type=Path, default=None, help="folder of the results; by default benchmarks/results/MACHINE/gpu")
    given = parser.parse_args(list(arguments))
    if given.device == "cpu" and not given.smoke:
        parser.error("--device cpu only rehearses: expected --smoke with it")
    if given.rounds < 3:
        parser.error(f"--rounds is {given.rounds}; expected at least 3")
    if given.budget <= 0:
        parser.error(f"--budget is {given.budget:g}; expected seconds above 0")
    sparsity = given.sparsity or (SMOKE_SPARSITIES if given.smoke else SPARSITIES)
    if bad := [value for value in sparsity if not 0 < value < 100]:
        parser.error(f"--sparsity has {bad[0]:g}; expected percentages between 0 and 100")
    return Gpu(
        device=given.device,
        sections=tuple(given.sections),
        budget=given.budget,
        rounds=3 if given.smoke else given.rounds,
        sparsity=tuple(sparsity),
        backends=tuple(given.backends),
        seed=given.seed,
        smoke=given.smoke,
        commit=given.commit,
        output=given.output,
    )


def folder(machine: str, smoke: bool, output: Path | None) -> Path:
    """Where results go: as asked, else by the GPU's name; rehearsals never among the results."""
    if output is not None:
        return output
    return SMOKE_OUTPUT if smoke else RESULTS / re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") / "gpu"
