"""A local directory as storage: every file is written beside its name, made durable, and only then given the name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actscope.errors import HarvestError
from actscope.harvest.storage.contract import Data
from actscope.runtime.publish import sync_directory, write_all

_CHUNK = 8 << 20
#: Files that were being written: a killed writer leaves one behind. Such names are never listed.
TEMPORARY = ".writing-"


class LocalStorage:
    """Objects are files below `root`, which the first makes. Any file system with hard links will do, shared ones too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def put_new(self, name: str, data: Data) -> bool:
        path = self._path(name)
        with self._naming(path, "writing"):
            return self._link(path, data) or self.get(name) == data

    def put(self, name: str, data: Data) -> None:
        path = self._path(name)
        with self._naming(path, "writing"):
            if not self._link(path, data):
                self._replace(path, data)

    def get(self, name: str) -> bytes | None:
        path = self._path(name)
        with self._naming(path, "reading"):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        path = self._path(name)
        with self._naming(path, "reading"):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def chunks(self, name: str) -> Iterator[Data]:
        path = self._path(name)
        with self._naming(path, "reading"), path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def names(self, folder: str) -> list[str]:
        path = self._path(folder)
        with self._naming(path, "listing the directory"):
            try:
                found = os.listdir(path)
            except FileNotFoundError:
                return []
        return sorted(f"{folder}/{name}" for name in found if not name.startswith(TEMPORARY))

    def delete(self, names: list[str]) -> None:
        for name in names:
            path = self._path(name)
            with self._naming(path, "removing"):
                path.unlink(missing_ok=True)

    def _link(self, path: Path, data: Data) -> bool:
        """Write a file that has no name, make it durable, and give it its name; False when the name is taken.

        Whoever is killed meanwhile leaves nothing behind. File systems that know no nameless files get a temporary name.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE, 0o644)
        except OSError:
            return self._link_named(path, data)
        with _closing(fd):
            write_all(fd, memoryview(data), 0)
            os.fsync(fd)
            return _named(f"/proc/self/fd/{fd}", path)

    def _link_named(self, path: Path, data: Data) -> bool:
        temporary = self._write_beside(path, data)
        try:
            return _named(str(temporary), path)
        finally:
            temporary.unlink(missing_ok=True)

    def _replace(self, path: Path, data: Data) -> None:
        temporary = self._write_beside(path, data)
        try:
            os.rename(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_beside(self, path: Path, data: Data) -> Path:
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        with _closing(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)) as fd:
            write_all(fd, memoryview(data), 0)
            os.fsync(fd)
        return temporary

    def _path(self, name: str) -> Path:
        return self.root / name

    @contextmanager
    def _naming(self, path: Path, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HarvestError(f"{path}: {doing} failed: {error.strerror or error}") from error


def _named(source: str, path: Path) -> bool:
    """Give a durable file its name, durably; False, atomically, when the name is taken."""
    with _closing(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as folder:
        try:
            # only with a directory's descriptor does Python call linkat, which follows /proc/self/fd/N to the file
            os.link(source, path.name, dst_dir_fd=folder, follow_symlinks=True)
        except FileExistsError:
            return False
        os.fsync(folder)
    return True


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
