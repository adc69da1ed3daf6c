"""One process at a time writes in a run's folder: a lock that the kernel takes back however the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
import warnings
from pathlib import Path

NAME = ".lock"  # in the folder, while it is held; one that a killed process left is held by nobody
PATIENCE = 5.0  # seconds that a job that goes on waits for the one before it, which may just be ending
POLL = 0.1
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}  # what file systems answer

_held: dict[Path, int] = {}  # this process's descriptors, by folder


class FolderInUse(OSError):
    """Another process writes in a folder; the message says which, and what to do."""


def hold(folder: Path, patience: float = 0.0) -> None:
    """Keeps all other processes from writing in `folder`, until `let_go` or the end of this process.

    A second call changes nothing, and children of this process do not hold it. Where the file system has no locks there
    is a warning instead.

    Args:
        folder: one that exists.
        patience: seconds to wait for another process that holds it.

    Raises FolderInUse where one still does, and OSError where no file can be made in the folder.
    """
    folder = folder.resolve()
    if folder in _held and not is_at(folder / NAME, _held[folder]):  # the folder was removed since, and is a new one
        os.close(_held.pop(folder))
    deadline = time.monotonic() + patience
    while folder not in _held:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(folder / NAME, descriptor):
                _held[folder] = descriptor
                note_holder(descriptor)
                return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FolderInUse(
                    f"{folder} is in use: {holder(descriptor)} is at work there. Wait until it has ended, or end it "
                    "(SIGTERM has it save first), and start again; another run needs an --output of its own"
                ) from None
            time.sleep(POLL)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): nothing keeps a second job from "
                "writing there too",
                stacklevel=2,
            )
            _held[folder] = descriptor
            return
        finally:
            if _held.get(folder) != descriptor:
                os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name: its last holder may have removed it before letting go."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def note_holder(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def holder(descriptor: int) -> str:
    return os.pread(descriptor, 300, 0).decode(errors="replace") or "another process"


def let_go(folder: Path | None = None) -> None:
    """Lets other processes write in a folder that this one holds, or in all of them."""
    for each in [*_held] if folder is None else [folder.resolve()]:
        if each in _held:
            descriptor = _held.pop(each)
            with contextlib.suppress(OSError):  # the folder may be gone
                if is_at(each / NAME, descriptor):
                    (each / NAME).unlink()
            os.close(descriptor)


def leave_to_parent() -> None:
    """A lock lasts as long as any process has its file open, and this one's parent may be killed before it."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=leave_to_parent)
