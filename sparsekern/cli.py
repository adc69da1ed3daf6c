"""The command line: `sparsekern COMMAND ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from sparsekern.commands.export import export
from sparsekern.commands.info import info
from sparsekern.commands.mask import mask
from sparsekern.commands.recipes import recipes
from sparsekern.commands.train import train
from sparsekern.compare.command import compare
from sparsekern.report.command import report

# name: (what it is for, function of its arguments that returns the exit code)
COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "train": ("train a network that stays sparse, or its dense twin", train),
    "mask": ("find the topology that a network begins with: SNIP, GraSP, SynFlow, lottery tickets", mask),
    "recipes": ("list the papers' configurations for train, or show one", recipes),
    "info": ("count parameters, FLOPs and activations of a network, sparse against dense", info),
    "export": ("write a trained network for others: dense, CSR, ONNX, torch.export", export),
    "compare": ("train a grid of methods, densities and seeds, and compare", compare),
    "report": ("make one HTML page of a run, or of several to compare", report),
}


def usage() -> str:
    lines = [f"  {name:10} {purpose}" for name, (purpose, _) in COMMANDS.items()]
    return "\n".join(["usage: sparsekern COMMAND ...", "", *lines, "", "sparsekern COMMAND --help lists its options."])


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return run(arguments)
    except BrokenPipeError:  # as with `| head`: nobody reads what is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]][1](arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    problem = f"unknown command {arguments[0]!r}" if arguments else "no command given"
    print(f"sparsekern: {problem}\n{usage()}", file=sys.stderr)
    return 2
