"""Files that only we may touch: opened without following links, checked, published whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from actscope.errors import RingError
from actscope.runtime.publish import publish_file


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a regular file that is ours and closed to others; RingError for anything else."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RingError(f"{path}: cannot be opened ({error.strerror}): is the engine running, as this user?") from error
    try:
        _check_private(path, os.fstat(fd))
    except RingError:
        os.close(fd)
        raise
    return fd


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RingError(f"{path}: expected a regular file, found {stat.filemode(status.st_mode)}: remove it")
    if status.st_uid != os.geteuid():
        raise RingError(f"{path}: expected owner {os.geteuid()}, found {status.st_uid}: run as that user")
    if status.st_mode & 0o077:
        raise RingError(f"{path}: expected mode 0600, found {stat.filemode(status.st_mode)}: chmod 600 it")


def read_private(path: Path, max_bytes: int) -> bytes:
    """The whole of a private file; RingError when it is larger than `max_bytes`."""
    fd = open_private(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        content = file.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(content) > max_bytes:
        raise RingError(f"{path}: has {size} bytes, at most {max_bytes} are accepted")
    return content


def publish_private(path: Path, content: bytes) -> None:
    """Write a private file so that a reader sees all of it or none of it.

    No fsync: what it says is about a running process and is worthless after a power cut.
    """
    try:
        publish_file(path, content, mode=0o600, durable=False)
    except OSError as error:
        raise RingError(f"{path}: cannot be written ({error.strerror})") from error


def check_private_dir(path: Path) -> None:
    """RingError unless `path` is a directory, no link, ours, closed to group and world."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise RingError(f"{path}: expected a directory and no link, found {stat.filemode(status.st_mode)}: remove it")
    if status.st_uid != os.geteuid():
        raise RingError(
            f"{path}: expected owner {os.geteuid()}, found {status.st_uid}: set ACTSCOPE_RUNTIME_DIR elsewhere"
        )
    if status.st_mode & 0o077:
        raise RingError(f"{path}: expected mode 0700, found {stat.filemode(status.st_mode)}: chmod 700 it")
