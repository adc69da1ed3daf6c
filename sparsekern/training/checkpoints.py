"""The checkpoints of one run: the newest, and the last ones before it."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from sparsekern.atomic import replace_file
from sparsekern.training.checkpoint import DamagedCheckpoint, load_checkpoint, save_checkpoint

EARLIER = re.compile(r"checkpoint-(\d+)\.safetensors")


class Checkpoints:
    """`checkpoint.safetensors` in a folder is the newest; `checkpoint-STEP.safetensors` are those saved before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest = folder / "checkpoint.safetensors"
        self.step: int | None = None  # of the newest, where it was saved or loaded here

    def earlier(self) -> dict[int, Path]:
        """By step, the latest first."""
        found = {
            int(match[1]): path
            for path in self.folder.glob("checkpoint-*.safetensors")
            if (match := EARLIER.fullmatch(path.name))
        }
        return dict(sorted(found.items(), reverse=True))

    def exist(self) -> bool:
        return self.newest.exists() or bool(self.earlier())

    def save(self, state: dict[str, Any], step: int, keep: int) -> None:
        """Makes `state`, of `step`, the newest. Of those before it, the last `keep` - 1 stay.

        At every moment the newest is whole. Raises OSError where it cannot be written; the old one then still is.
        """
        if keep > 1 and self.step is not None and self.step != step and self.newest.exists():
            self.keep_as(self.folder / f"checkpoint-{self.step}.safetensors")
        save_checkpoint(self.newest, state)
        self.step = step
        earlier = self.earlier()
        # Those of later steps are left from before the run went back, and no part of its past.
        kept = [before for before in earlier if before < step][: keep - 1]
        for before, path in earlier.items():
            if before not in kept:
                path.unlink()

    def keep_as(self, path: Path) -> None:
        """Gives the newest a second name."""
        path.unlink(missing_ok=True)
        try:
            os.link(self.newest, path)
        except OSError:  # not every file system has hard links
            replace_file(path, lambda aside: shutil.copyfile(self.newest, aside))

    def find(self) -> tuple[Path, dict[str, Any]]:
        """The newest that can be read, and its state, with a warning that names those that cannot.

        Of several processes one is to ask, and to tell the others the path. Raises FileNotFoundError where there is
        none, DamagedCheckpoint where all are damaged, CheckpointError for a newer version's.
        """
        problems: list[str] = []
        paths = [self.newest, *self.earlier().values()]
        for path in paths:
            try:
                state = load_checkpoint(path)
            except DamagedCheckpoint as error:
                problems.append(str(error))
            except FileNotFoundError as error:
                if len(paths) == 1:
                    raise
                problems.append(str(error))
            else:
                if problems:
                    warnings.warn(f"{'; '.join(problems)}. The run goes on from {path}, an earlier one", stacklevel=2)
                self.step = state["progress"]["step"] if path == self.newest else None
                return path, state
        raise DamagedCheckpoint("; ".join(problems) + (". No earlier one can be read" if len(paths) > 1 else ""))
