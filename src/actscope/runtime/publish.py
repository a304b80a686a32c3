"""Atomic, optionally durable, publication of files."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def publish_file(path: Path, data: bytes | memoryview, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file atomically: write a temporary file beside it, then rename that.

    Args:
        path: The file's name. An existing file is replaced.
        data: The file's content.
        mode: The file's permissions, before the umask.
        durable: Make content and name survive a power cut (fsync of the file and of its directory).

    Raises:
        OSError: The file could not be written. The temporary file, `.<name>.<16 hex digits>.tmp`, is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            write_all(fd, data, 0)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


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
