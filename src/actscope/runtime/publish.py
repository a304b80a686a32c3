"""Atomic, optionally durable, publication of files and directories."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def publish_file(path: Path, data: bytes | memoryview, *, mode: int = 0o600, durable: bool = True) -> None:
    """Write a file atomically: write a temporary file beside it, then rename that.

    Args:
        path: The file's name. An existing file is replaced.
        data: The file's content.
        mode: The file's permissions, before the umask. By default only its owner can read it.
        durable: Make content and name survive a power cut (fsync of the file and of its directory).

    Raises:
        OSError: The file could not be written. The temporary file, `.<name>.<16 hex digits>.tmp`, is removed.
    """
    publish_files({path: data}, mode=mode, durable=durable)


def publish_files(files: Mapping[Path, bytes | memoryview], *, mode: int = 0o600, durable: bool = True) -> None:
    """Write several files like `publish_file`: none gets its name before the last one is written, so a full disk leaves none.

    Args:
        files: Content by name. Existing files are replaced.
        mode: The files' permissions, before the umask.
        durable: Make contents and names survive a power cut.

    Raises:
        OSError: A file could not be written. All temporary files are removed.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp") for path in files}
    try:
        for path, temporary in temporaries.items():
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                write_all(fd, files[path], 0)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
        for path, temporary in temporaries.items():
            os.rename(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        for directory in {path.parent for path in files}:
            sync_directory(directory)


def private_opener(path: str, flags: int) -> int:
    """Open a file that only its owner can read: the `opener` of `open` for files that hold activations or tokens."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextmanager
def publish_directory(path: Path) -> Iterator[Path | None]:
    """Fill a private directory and publish it atomically, once: a reader sees all of it or none.

    Yields a new, empty directory beside `path`, mode 0700. When the block ends, its files get mode 0600 and are synced, and it
    is renamed to `path`. When the block fails, it is removed. Yields None, and does nothing, if `path` exists already. Processes
    that publish the same path run one after the other, so that all but the first find the directory of the first. What a killed
    process left is removed by the next one.

    Raises:
        OSError: A directory or file cannot be written.
    """
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.is_dir():
            yield None
            return
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        temporary.mkdir(mode=0o700)
        try:
            yield temporary
            _seal(temporary)
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(path.parent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if it does not exist. A process that ends releases it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _seal(directory: Path) -> None:
    """Make the files of a directory private and durable."""
    for file in directory.iterdir():
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_directory(directory)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` by `pwrite`, and continue after short writes. Raises OSError if one writes nothing."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        if done <= 0:
            raise OSError(5, f"a write of {len(view)} bytes at {offset} wrote nothing")
        view, offset = view[done:], offset + done


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
