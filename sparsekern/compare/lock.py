"""One comparison at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

PATIENCE = 60.0  # seconds that the runs of a killed comparison have to save


class FolderLock:
    """Held, within it, by one process and by those that inherit its `descriptor`: until the last of them has ended.

    So a comparison does not meet the runs of one that was killed while they still save. Raises ValueError for a
    folder where another comparison is at work.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".lock"

    def __enter__(self) -> FolderLock:
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.acquire()
        except BaseException:
            os.close(self.descriptor)
            raise
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)
        return self

    def acquire(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = os.pread(self.descriptor, 32, 0).decode()
                if is_alive(holder) or time.monotonic() > deadline:
                    raise ValueError(f"another comparison (process {holder}) is at work in {self.folder}") from None
            time.sleep(0.1)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.descriptor)


def is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
