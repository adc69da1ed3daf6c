"""The commands' options. Imports nothing heavy: they are read before torch is loaded."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def command_line(name: str, options: Any) -> str:
    """The command that these options came from: all that differ from their defaults, but where results go."""
    words = ["python", "-m", "benchmarks", name]
    for each in fields(options):
        value = getattr(options, each.name)
        if value == each.default or each.name == "output":
            continue
        words.append("--" + each.name.replace("_", "-"))
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


@dataclass(frozen=True)
class Layers:
    """One layer's training step (forward, input and weight gradient) in several libraries, and charts of it.

    Public modules under autograd, in one process, in the same rounds on the same fresh inputs. Each library's
    results are compared with dense before anything is timed; one that differs is reported and left out. Libraries
    that are not installed are skipped (README.md says how to install them).
    """

    threads: int = 1
    """Of torch and of every library."""
    rounds: int = 9
    """Timed rounds, at least 2; medians are reported."""
    layer: str = ""
    """Only layers whose name contains this."""
    sparsity: tuple[float, ...] = (30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.9)
    """Shares of zero weights, in percent."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations. Other sparse libraries have float32 only."""
    peers: tuple[Literal["torch-csr", "sparseprop", "sparselab"], ...] = ("torch-csr", "sparseprop", "sparselab")
    """Other libraries to measure; `--peers` alone for none."""
    batch: int | None = None
    """Tokens or images in place of the layer's own number."""
    longest: float = 2.0
    """Seconds; a peer whose call takes longer is skipped there and at lower sparsities."""
    seed: int = 0
    """Of weights, masks and inputs."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Networks:
    """One training step of whole networks: forward, backward and optimizer; and what remains beside the products.

    Dense as users run it, the fastest dense there is, and sparse at several densities, in the same rounds. Before,
    the sparse network's gradients are compared with those of a dense network with the same zeros.
    """

    threads: int = 2
    """Of torch and of the kernels."""
    rounds: int = 7
    """Timed rounds, at least 2; medians are reported."""
    network: str = ""
    """Only networks whose name contains this."""
    sparsity: tuple[float, ...] = (90, 95, 98, 99)
    """Shares of zero weights over all sparse layers, in percent."""
    batch: int = 64
    """Images in a step."""
    seed: int = 0
    """Of weights, topologies and inputs."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one training step of whole networks, dense and sparse, and what it is made of.

    Each network runs in a fresh process, which gives freed memory back at once. Parts are counted in bytes of live
    tensors; the peak is the process's resident memory above that after the imports.
    """

    threads: int = 1
    """Of torch and of the kernels."""
    network: str = ""
    """Only networks whose name contains this."""
    sparsity: tuple[float, ...] = (90, 95, 98, 99)
    """Shares of zero weights over all sparse layers, in percent."""
    batch: int = 64
    """Images in a step."""
    seed: int = 0
    """Of weights, topologies and inputs."""
    limit: float = 12.0
    """GiB that a process may take."""
    seconds: float = 300.0
    """Time that a process may take."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Large:
    """Memory of ResNet-50 and ViT-B/16 while they are built, trained for two steps and saved, dense and sparse.

    Each runs in a fresh process, which gives freed memory back at once; a sparse one under `forbid_dense`.
    """

    threads: int = 2
    """Of torch and of the kernels."""
    network: str = ""
    """Only networks whose name contains this."""
    sparsity: tuple[float, ...] = (99,)
    """Shares of zero weights over all sparse layers, in percent."""
    batch: int = 13
    """Images in a step; a prime that divides no layer's size keeps `forbid_dense` sharp."""
    size: int = 224
    """Pixels of the images a side, a multiple of 16."""
    seed: int = 0
    """Of weights, topologies and inputs."""
    limit: float = 20.0
    """GiB that a process may take."""
    seconds: float = 300.0
    """Time that a process may take."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Width:
    """Step time and peak memory of one square layer by its width, at a fixed number of edges a neuron.

    Adam, and a GSE update every few steps, whose step is shown apart. Each cell runs in fresh processes under a
    memory and a time limit; a dense layer that is predicted not to fit is marked and not tried.
    """

    threads: int = 2
    """Of torch and of the kernels."""
    widths: tuple[int, ...] = tuple(2**power for power in range(10, 19))
    """Inputs and outputs of the layer."""
    edges: tuple[int, ...] = (8, 32)
    """Edges a neuron."""
    batch: int = 32
    """Samples in a step."""
    interval: int = 8
    """Steps from one topology update to the next."""
    updates: int = 5
    """Updates that are timed, at least 2."""
    sampler: Literal["uniform", "grabo", "graest"] = "grabo"
    """Of GSE's candidates, one an edge."""
    limit: float = 16.0
    """GiB that a process may take."""
    seconds: float = 120.0
    """Time that a process may take."""
    seed: int = 0
    """Of topologies and inputs."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Wire:
    """Bytes that a rank sends in a step of DistributedDataParallel, sparse against dense; and whether the topologies
    of ranks stay those of a single process. Linux only."""

    ranks: tuple[int, ...] = (2, 3, 4)
    """Numbers of processes, on this machine."""
    densities: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02, 0.01)
    """Shares of nonzero weights."""
    widths: tuple[int, ...] = (2048, 2048, 2048, 512)
    """Of a fully connected network's layers."""
    batch: int = 8
    """Samples on each rank."""
    steps: int = 4
    """Measured steps, the last with an update; at least 2."""
    interval: int = 100
    """Steps between updates that the figures are computed for."""
    updates: int = 200
    """For which topologies are compared."""
    threads: int = 1
    """Of each process."""
    seed: int = 0
    """Of topologies and inputs."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Updates:
    """Time of one GSE update, of a square layer by its width, and of other layers against an ordinary step.

    All that an update step does beyond a plain one: drawing the candidates and computing their gradients inside
    backward, then Growth.step (selection, replacement of edges, transposition, moving the weight, its gradient and
    Adam's state). An update is O(rows + columns + edges): twice the width should take twice the time.
    """

    threads: int = 1
    """Of torch and of the kernels."""
    widths: tuple[int, ...] = tuple(2**power for power in range(14, 19))
    """Inputs and outputs of the layer."""
    edges: int = 8
    """Edges a neuron."""
    batch: int = 32
    """Samples in the square layer's activations."""
    layer: str = ""
    """Of the layers against an ordinary step only those whose name contains this."""
    sparsity: tuple[float, ...] = (90, 95, 98, 99)
    """Theirs, in percent of zeros."""
    repeats: int = 15
    """Timed updates, at least 2; medians are reported."""
    cpu_time: bool = False
    """Count CPU time, which on a busy machine and with one thread says more."""
    seed: int = 0
    """Of topologies and inputs."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Digits:
    """Accuracy on digits of every growth method, at two densities, over five seeds, beside the dense network.

    Each run is one `sparsekern train` on one thread, below 30 s on a free core. Finished runs are kept in the runs
    folder and skipped, begun ones resumed, so that a killed table goes on where it was.
    """

    runs: Path = Path("runs/digits-table")
    """Folder of the single runs."""
    processes: int = 2
    """Runs at a time, each on one thread."""
    output: Path = ROOT / "docs"
    """Folder of digits.json and, made from that file alone, digits.md."""


@dataclass(frozen=True)
class Tost:
    """Accuracy on digits of ToST's ingredients, one by one and together, with a static topology and under GSE.

    Each run is one `sparsekern train` on one thread, below a minute on a free core. Finished runs are kept in the runs
    folder and skipped, begun ones resumed, so that a killed table goes on where it was.
    """

    runs: Path = Path("runs/tost-table")
    """Folder of the single runs."""
    processes: int = 2
    """Runs at a time, each on one thread."""
    output: Path = ROOT / "docs"
    """Folder of tost-digits.json and, made from that file alone, tost-digits.md."""


@dataclass(frozen=True)
class Faults:
    """What a run survives: SIGKILL while saving, damaged and newer files, a full disk, many steps, interrupted jobs."""

    threads: int = 1
    """Of torch and of the kernels."""
    sections: tuple[Literal["kill", "damage", "newer", "disk", "steps", "jobs"], ...] = (
        *("kill", "damage", "newer", "disk", "steps", "jobs"),
    )
    """What to do. Those that are not named stay in the results as they were."""
    kills: int = 200
    """kill: times that a saving process is killed."""
    flips: int = 1000
    """damage: bits that are flipped, one at a time; truncation is at every 1% always."""
    steps: int = 20000
    """steps: training steps, at least 2000."""
    interruptions: int = 20
    """jobs: kills; restarts and stops, kills of torchrun and second starts are a quarter as many, hangs a tenth."""
    ranks: int = 1
    """jobs: processes under torchrun."""
    seed: int = 0
    """Of runs and of random moments."""
    output: Path = RESULTS
    """Folder of the results."""


@dataclass(frozen=True)
class Readme:
    """Copies measured tables and charts into README.md, between its markers."""

    file: Path = ROOT / "README.md"
    """The page to fill."""


@dataclass(frozen=True)
class GpuPage:
    """Writes the page of what was measured on GPUs from the files of `make gpu`."""

    results: Path = RESULTS
    """Folder with a folder for each machine."""
    file: Path = ROOT / "docs" / "gpu-measured.md"
    """The page."""


@dataclass(frozen=True)
class Crossover:
    """Writes the table of where dense measured faster, which `sparsekern info` reads, and a page of it."""

    results: Path = RESULTS
    """Folder with a folder for each machine."""
    table: Path = ROOT / "sparsekern" / "crossover.json"
    """The table, which is part of the package."""
    file: Path = ROOT / "docs" / "crossover.md"
    """The page."""
