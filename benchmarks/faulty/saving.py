"""A process that saves without pause, killed at a random moment."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faulty.states import at_step, same, two_states
from sparsekern.atomic import remove_unfinished
from sparsekern.training.checkpoint import CheckpointError, load_checkpoint
from sparsekern.training.checkpoints import Checkpoints

KEEP = 3


def kill(times: int, seed: int, width: int = 64) -> dict[str, Any]:
    """SIGKILL `times` times. Step n saves the first state where n is odd and the second where it is even.

    Each time the newest checkpoint must be that of the last finished save or of the one that was going on, and equal
    to what was saved, and the earlier ones too. The next process goes on in the same folder.
    """
    states = two_states(seed, width)
    draws = random.Random(seed)
    outcomes: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = Checkpoints(folder)
        started = time.perf_counter()
        checkpoints.save(at_step(states[1], 0), 0, KEEP)
        duration = time.perf_counter() - started
        size = checkpoints.newest.stat().st_size
        for _ in range(times):
            before = Checkpoints(folder).find()[1]["progress"]["step"]
            finished = before + kill_one(folder, states, before, draws.uniform(0, 4 * duration))
            moments[moment(folder, size)] += 1
            outcomes[outcome(folder, states, finished)] += 1
            remove_unfinished(folder)
    return {
        "kills": times,
        "bytes": size,
        "seconds_of_a_save": duration,
        "newest_whole_and_right": outcomes["right"],
        "outcomes": dict(outcomes),
        "moments": dict(moments),
    }


def kill_one(folder: Path, states: list[dict[str, Any]], before: int, seconds: float) -> int:
    """Kills a process that saves, `seconds` after its first save. Returns how many it had finished."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_without_pause(folder, states, before, writing)
        finally:
            os._exit(1)  # whatever went wrong: the parent's work is not to be done twice
    os.close(writing)
    finished = len(os.read(reading, 1))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 4096):
        finished += len(more)
    os.close(reading)
    return finished


def save_without_pause(folder: Path, states: list[dict[str, Any]], step: int, report: int) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.step = step
    while True:
        step += 1
        checkpoints.save(at_step(states[(step + 1) % 2], step), step, KEEP)
        os.write(report, b".")


def outcome(folder: Path, states: list[dict[str, Any]], finished: int) -> str:
    checkpoints = Checkpoints(folder)
    try:
        found = [load_checkpoint(path) for path in (checkpoints.newest, *checkpoints.earlier().values())]
    except CheckpointError:
        return "damaged"
    steps = [state["progress"]["step"] for state in found]
    if steps[0] not in (finished, finished + 1):
        return "not the last one"
    right = all(same(state, at_step(states[(step + 1) % 2], step)) for state, step in zip(found, steps, strict=True))
    return "right" if right and len(found) >= min(KEEP, finished) else "wrong"


def moment(folder: Path, size: int) -> str:
    """What the process was at, by what it left."""
    aside = [path for path in folder.glob(".*.tmp/*") if path.is_file()]
    written = max((path.stat().st_size for path in aside), default=None)
    if written is None:
        return "between the files"
    if written == size:
        return "file written, not in place"
    return "file begun" if written else "file empty"
