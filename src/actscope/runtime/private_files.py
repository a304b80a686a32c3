"""Private files of one user: opened without following links, checked for owner and mode, published atomically."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from actscope.errors import RingError
from actscope.runtime.publish import publish_file


def open_private(path: Path, flags: int) -> int:
    """Open a regular file that belongs to this user, mode 0600 or stricter, and return its descriptor.

    Raises RingError for anything else, symbolic links included.
    """
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
    """Return the content of a private file. Raises RingError if it has more than `max_bytes` bytes or is not private."""
    fd = open_private(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        content = file.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(content) > max_bytes:
        raise RingError(f"{path}: has {size} bytes, at most {max_bytes} are accepted")
    return content


def publish_private(path: Path, content: bytes) -> None:
    """Write a private file atomically: a reader sees either the complete file or none.

    There is no fsync: the content describes a running process and is worthless after a power cut. Raises RingError if
    the file cannot be written.
    """
    try:
        publish_file(path, content, mode=0o600, durable=False)
    except OSError as error:
        raise RingError(f"{path}: cannot be written ({error.strerror}): set ACTSCOPE_RUNTIME_DIR") from error


def check_private_dir(path: Path) -> None:
    """Raise RingError unless `path` is a directory (not a link), belongs to this user, and is closed to group and others."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise RingError(f"{path}: expected a directory and no link, found {stat.filemode(status.st_mode)}: remove it")
    if status.st_uid != os.geteuid():
        raise RingError(
            f"{path}: expected owner {os.geteuid()}, found {status.st_uid}: set ACTSCOPE_RUNTIME_DIR elsewhere"
        )
    if status.st_mode & 0o077:
        raise RingError(f"{path}: expected mode 0700, found {stat.filemode(status.st_mode)}: chmod 700 it")
