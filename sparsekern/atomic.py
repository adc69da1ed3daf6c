"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` make the file aside, then moves it to `path`, through power loss too (fsync of file and folder).

    Whatever goes wrong before the move leaves the old file as it was and removes what was written aside, but for a
    SIGKILL: `remove_unfinished` does so then. Raises what `write` does, and OSError.
    """
    # A folder: some writers, safetensors among them, write aside themselves, under names of their own.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(exist_ok=True)
        made = aside / path.name
        write(made)
        os.chmod(made, aside.stat().st_mode & 0o666)  # safetensors lets the owner alone read a new file
        sync(made)
        os.replace(made, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed calls of `replace_file` left in a folder. None may be at work there."""
    for aside in folder.glob(".*.tmp"):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
