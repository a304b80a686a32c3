"""Storage in a local directory. A file is written without its name, fsynced, and only then linked or renamed to the name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actscope.errors import HarvestError
from actscope.harvest.storage.contract import Data
from actscope.runtime.memory import check_room
from actscope.runtime.publish import sync_directory, write_all
from actscope.runtime.regular_files import open_regular

_CHUNK = 8 << 20
#: Prefix of files that are being written. A killed writer may leave one behind; such names are never listed.
TEMPORARY = ".writing-"


class LocalStorage:
    """Storage with one file per object below `root`, which the first write creates.

    Folders get mode 0700 and files 0600. No name, and no link, leads out of `root`. The file system needs hard links; a shared
    one works too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def put_new(self, name: str, data: Data) -> bool:
        """Put an object by hard link, which fails if the name exists. Return whether the object now has these bytes."""
        path = self._path(name)
        with self._naming(path, "writing"):
            return self._link(path, data) or self.get(name) == data

    def put(self, name: str, data: Data) -> None:
        """Put an object, replacing an existing one by rename."""
        path = self._path(name)
        with self._naming(path, "writing"):
            if not self._link(path, data):
                self._replace(path, data)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""
        path = self._path(name)
        with self._naming(path, "reading"):
            try:
                with os.fdopen(self.open(name), "rb") as file:
                    check_room(os.fstat(file.fileno()).st_size, HarvestError, f"{path}: its content")
                    return file.read()
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist."""
        path = self._path(name)
        with self._naming(path, "reading"):
            try:
                with os.fdopen(self.open(name), "rb") as file:
                    return os.fstat(file.fileno()).st_size
            except FileNotFoundError:
                return None

    def chunks(self, name: str) -> Iterator[Data]:
        """Yield the bytes of a file in chunks. Raises HarvestError if it does not exist."""
        path = self._path(name)
        with self._naming(path, "reading"), os.fdopen(self.open(name), "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects in `folder`, including the folder, sorted. Temporary files are left out."""
        path = self._path(folder)
        with self._naming(path, "listing the directory"):
            try:
                found = os.listdir(path)
            except FileNotFoundError:
                return []
        return sorted(f"{folder}/{name}" for name in found if not name.startswith(TEMPORARY))

    def delete(self, names: list[str]) -> None:
        """Unlink files. A file that does not exist is not an error."""
        for name in names:
            path = self._path(name)
            with self._naming(path, "removing"):
                path.unlink(missing_ok=True)

    def _link(self, path: Path, data: Data) -> bool:
        """Write a file without a name, fsync it, and link it to its name. Return False if the name is taken.

        A process that is killed in the middle leaves nothing behind. A temporary name is used on file systems without O_TMPFILE.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            fd = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE, 0o600)
        except OSError:
            return self._link_named(path, data)
        with _closing(fd):
            write_all(fd, memoryview(data), 0)
            os.fsync(fd)
            return _named(f"/proc/self/fd/{fd}", path)

    def _link_named(self, path: Path, data: Data) -> bool:
        """Do the same through a temporary name."""
        temporary = self._write_beside(path, data)
        try:
            return _named(str(temporary), path)
        finally:
            temporary.unlink(missing_ok=True)

    def _replace(self, path: Path, data: Data) -> None:
        """Replace a file atomically and durably."""
        temporary = self._write_beside(path, data)
        try:
            os.rename(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_beside(self, path: Path, data: Data) -> Path:
        """Write a durable file with a temporary name in the same directory. Return its path."""
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        with _closing(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)) as fd:
            write_all(fd, memoryview(data), 0)
            os.fsync(fd)
        return temporary

    def open(self, name: str) -> int:
        """Open a file for reading, and return its descriptor.

        Raises:
            FileNotFoundError: There is no such file.
            HarvestError: The name, or a link, leads out of the directory; or it is no regular file.
        """
        return open_regular(self._path(name), HarvestError, follow=False)

    def _path(self, name: str) -> Path:
        """Return the path of an object. Raises HarvestError if its name, or a link on the way, leads out of the directory."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise HarvestError(f"{self.root}: {name[:200]!r} is not the name of an object of a harvest")
        folder = self.root
        for part in parts[:-1]:
            folder = folder / part
            if folder.is_symlink():
                raise HarvestError(f"{folder}: expected a folder of the harvest, found a link, which is not followed")
        return folder / parts[-1]

    @contextmanager
    def _naming(self, path: Path, doing: str) -> Iterator[None]:
        """Turn an OSError into a HarvestError that names the path and the operation."""
        try:
            yield
        except HarvestError:
            raise
        except OSError as error:
            raise HarvestError(f"{path}: {doing} failed: {error.strerror or error}") from error


def _named(source: str, path: Path) -> bool:
    """Link a durable file to its name, and fsync the directory. Return False if the name is taken; the check is atomic."""
    with _closing(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as folder:
        try:
            # Python calls linkat, which follows /proc/self/fd/N to the file, only with a directory's descriptor
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
