"""The same layer in several libraries.

`dense` and `ours` are always there; `PEERS` are other sparse libraries, which may not be installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.libraries import sparselab, sparseprop, torch_csr
from benchmarks.libraries.candidate import Candidate


@dataclass(frozen=True)
class Peer:
    """Another sparse library: `make(layer, mask)` gives its candidates, one for each way it has, for float32."""

    package: str
    make: Callable[[nn.Linear | nn.Conv2d, Tensor], list[Candidate]]
    linear_only: bool = False


# The names of the command line's --peers.
PEERS = {
    "torch-csr": Peer("torch", torch_csr.layers, linear_only=True),
    "sparseprop": Peer("sparseprop", sparseprop.layers),
    "sparselab": Peer("sparselab", sparselab.layers, linear_only=True),
}


def available(names: Sequence[str]) -> tuple[dict[str, Peer], list[str]]:
    """The peers of these names that are installed, and a line for each that is not."""
    missing = {name for name in names if importlib.util.find_spec(PEERS[name].package) is None}
    found = {name: PEERS[name] for name in names if name not in missing}
    return found, [f"{PEERS[name].package} is not installed: skipped" for name in names if name in missing]
