"""Random draws that depend on what they are for and on nothing that came before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def hashed_seed(*parts: object) -> int:
    """A 63-bit seed of its own for each combination of parts."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """torch's own CPU generator starts at `seed` inside, and is afterwards as it was."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield
