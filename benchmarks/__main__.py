"""The command line: `python -m benchmarks COMMAND ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from benchmarks import options, process

# name: (what it is for, class of its options); the module of that name has `run`, which takes them
COMMANDS = {
    "layers": ("single layers' training step against dense and other sparse libraries", options.Layers),
    "networks": ("whole networks' training step against dense", options.Networks),
    "memory": ("peak memory of a training step of whole networks against dense", options.Memory),
    "large": ("memory of ResNet-50 and ViT-B/16: built, trained and saved", options.Large),
    "width": ("a layer's step time and memory by its width, at a fixed number of edges a neuron", options.Width),
    "updates": ("time of one topology update by the layer's width", options.Updates),
    "wire": ("bytes that ranks send in a step, against dense", options.Wire),
    "digits": ("accuracy on digits of every growth method", options.Digits),
    "tost": ("accuracy on digits of ToST's ingredients", options.Tost),
    "faults": ("what a run survives: kills, damaged files, a full disk, interruptions", options.Faults),
    "gpu-page": ("write docs/gpu-measured.md from the files of make gpu", options.GpuPage),
    "crossover": ("write the table of where dense measured faster, from the result files", options.Crossover),
    "readme": ("copy the measured tables and charts into README.md", options.Readme),
}

# Reads its own options, and keeps to nothing that tyro is needed for: a GPU machine's Python may lack it.
GPU = ("gpu", "layers and whole networks on a GPU against dense and cuSPARSE; --device cpu --smoke rehearses")


def usage() -> str:
    lines = [f"  {name:10} {purpose}" for name, (purpose, _) in COMMANDS.items()] + [f"  {GPU[0]:10} {GPU[1]}"]
    head, tail = "usage: python -m benchmarks COMMAND ...", "python -m benchmarks COMMAND --help lists its options."
    return "\n".join([head, "", *lines, "", tail])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit code: 0, 1 for what cannot be done, 2 for an unknown command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return measure(arguments[0], arguments[1:])
    if arguments and arguments[0] == GPU[0]:
        return importlib.import_module("benchmarks.gpu.command").main(arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    problem = f"unknown command {arguments[0]!r}" if arguments else "no command given"
    print(f"benchmarks: {problem}\n{usage()}", file=sys.stderr)
    return 2


def measure(command: str, arguments: Sequence[str]) -> int:
    import tyro

    parsed = tyro.cli(COMMANDS[command][1], prog=f"python -m benchmarks {command}", args=arguments)
    process.prepare(getattr(parsed, "threads", None))
    try:
        # Only now may torch be imported: it and other libraries read the number of threads as they are loaded.
        importlib.import_module(f"benchmarks.{command.replace('-', '_')}").run(parsed)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"benchmarks {command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
