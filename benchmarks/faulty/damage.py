"""Checkpoints cut short, with a flipped bit, and from a newer version."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faulty.states import at_step, same, two_states
from sparsekern.sealed import save_sealed
from sparsekern.training import checkpoint
from sparsekern.training.checkpoint import CheckpointError, load_checkpoint
from sparsekern.training.checkpoints import Checkpoints


def damage(flips: int, seed: int, width: int = 64) -> dict[str, Any]:
    """The newest of two checkpoints cut at every 1% of its length, and with one random bit flipped, `flips` times.

    Each must be an error that names the file, and a run that resumes must go on from the earlier one, or stop.
    """
    states = two_states(seed, width)
    draws = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name))
        for step, state in enumerate(states, start=1):
            checkpoints.save(at_step(state, step), step, keep=2)
        content = checkpoints.newest.read_bytes()
        cut = Counter(meet(checkpoints, content[: len(content) * share // 100], states) for share in range(100))
        flipped: Counter[str] = Counter()
        for _ in range(flips):
            bit = draws.randrange(8 * len(content))
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            flipped[meet(checkpoints, bytes(damaged), states)] += 1
    return {
        "bytes": len(content),
        "truncations": dict(cut),
        "flips": dict(flipped),
        "errors": 100 + flips - sum(found["loaded"] for found in (cut, flipped)),
        "of": 100 + flips,
    }


def meet(checkpoints: Checkpoints, content: bytes, states: list[dict[str, Any]]) -> str:
    """What becomes of the newest checkpoint with this content."""
    checkpoints.newest.write_bytes(content)
    try:
        load_checkpoint(checkpoints.newest)
    except CheckpointError as error:
        if str(checkpoints.newest) not in str(error):
            return "unclear error"
    else:
        return "loaded"
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            _, state = checkpoints.find()
    except CheckpointError:
        return "error, run does not go on"
    is_right = same(state, at_step(states[0], 1)) and len(warned) == 1
    return "error, run goes on from the earlier one" if is_right else "wrong model"


def newer(seed: int) -> dict[str, Any]:
    """A checkpoint of the next format, with an earlier one of this: an error, and no going back."""
    states = two_states(seed)
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name))
        for step, state in enumerate(states, start=1):
            checkpoints.save(at_step(state, step), step, keep=2)
        save_sealed(checkpoints.newest, checkpoint.FORMAT, checkpoint.VERSION + 1, "{}", {})
        try:
            checkpoints.find()
        except CheckpointError as error:
            message = str(error).replace(name, "RUN")
            return {"refused": "newer than format" in message and "upgrade" in message, "message": message}
    return {"refused": False}
