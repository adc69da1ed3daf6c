"""Where a distributed data set lies: an archive or the folder that comes out of it, and what is wrong with it."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class DataError(ValueError):
    """A data set that is damaged or not what it should be; the message says where, and where a whole one is."""


@dataclass(frozen=True)
class Distribution:
    """How a data set is handed out.

    Attributes:
        title: its name in messages.
        archive: file name of the archive.
        folder: the folder that is in the archive.
        site: page to get it from.
    """

    title: str
    archive: str
    folder: str
    site: str

    def missing(self, root: Path) -> FileNotFoundError:
        return FileNotFoundError(
            f"no {self.title} in {root}: get {self.archive} from {self.site} and put it, or the folder {self.folder} "
            f"that is in it, into {root}; --data-root names another place"
        )

    def damaged(self, path: Path, problem: object) -> DataError:
        return DataError(
            f"{path} is damaged or not the {self.title} of {self.site}: {problem}. Get {self.archive} from there anew "
            "and put it in its place"
        )


class Source(Protocol):
    """Files under their names in the distributed folder."""

    path: Path

    def names(self) -> Collection[str]: ...

    def read(self, name: str) -> bytes:
        """Raises KeyError where there is no such file, OSError or ValueError where it cannot be read."""


class FolderSource:
    """The extracted folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return [each.relative_to(self.path).as_posix() for each in self.path.rglob("*") if each.is_file()]

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None


class ZipSource:
    """A zip archive, read in place. Each file is checked against its checksum; threads may read at once."""

    def __init__(self, path: Path, folder: str) -> None:
        self.path, self.prefix = path, f"{folder}/"
        try:
            self.file = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(error) from error

    def names(self) -> list[str]:
        inside = (name for name in self.file.namelist() if name.startswith(self.prefix) and not name.endswith("/"))
        return [name.removeprefix(self.prefix) for name in inside]

    def read(self, name: str) -> bytes:
        try:
            return self.file.read(self.prefix + name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{name}: {error}") from error


class TarGzSource:
    """A tar.gz archive, read whole, to its checksum at the end, and kept in memory."""

    def __init__(self, path: Path, folder: str) -> None:
        self.path = path
        self.files: dict[str, bytes] = {}
        try:
            with gzip.open(path) as stream:
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for member in archive:
                        content = archive.extractfile(member) if member.isfile() else None
                        if content is not None and member.name.startswith(f"{folder}/"):
                            self.files[member.name.removeprefix(f"{folder}/")] = content.read()
                while stream.read(1 << 20):  # gzip compares the checksum when it reaches the end
                    pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(error) from error

    def names(self) -> Collection[str]:
        return self.files.keys()

    def read(self, name: str) -> bytes:
        return self.files[name]


def open_source(root: Path, distribution: Distribution) -> Source:
    """The data set under `root`: its folder where there is one, else its archive; `root` may be either itself.

    Raises FileNotFoundError, saying where to get it and where to put it, or DataError for a broken archive.
    """
    folder, archive = root / distribution.folder, root / distribution.archive
    if root.name == distribution.folder and root.is_dir():
        return FolderSource(root)
    if root.name == distribution.archive and root.is_file():
        archive = root
    elif folder.is_dir():
        return FolderSource(folder)
    elif not archive.is_file():
        raise distribution.missing(root)
    kind = ZipSource if archive.suffix == ".zip" else TarGzSource
    try:
        return kind(archive, distribution.folder)
    except ValueError as error:
        raise distribution.damaged(archive, error) from error
