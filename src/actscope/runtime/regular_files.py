"""Foreign regular files: opened without waiting for a pipe's other end, and read up to a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from actscope.errors import ActscopeError

_PIECE = 1 << 20


def open_regular(path: Path, error: type[ActscopeError], *, follow: bool = True) -> int:
    """Open a regular file for reading, and return its descriptor.

    Args:
        path: The file. A pipe, a socket, a device or a directory in its place is refused without waiting for it.
        error: Error to raise.
        follow: Whether `path` itself may be a symbolic link.

    Raises:
        FileNotFoundError: There is no such file.
        ActscopeError: An `error` that names the path, what was expected and what was found.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror or reason}") from reason
    except ValueError as reason:  # a NUL in the name
        raise error(f"{str(path)!r}: is not the name of a file: {reason}") from reason
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise error(f"{path}: expected a regular file, found {_kind(mode)}")
    return fd


def _kind(mode: int) -> str:
    """Return what something is that is no regular file, and what to do."""
    if stat.S_ISDIR(mode):
        return "a directory: name a file in it"
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a block device",
    }
    return f"{kinds.get(stat.S_IFMT(mode), stat.filemode(mode))}: write what it gives into a file, and name that"


def read_regular(path: Path, most: int, error: type[ActscopeError], *, follow: bool = True) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Nothing is allocated for a larger one.

    Raises:
        FileNotFoundError: There is no such file.
        ActscopeError: An `error`, if it is no regular file, has more bytes, or cannot be read.
    """
    with os.fdopen(open_regular(path, error, follow=follow), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise error(f"{path}: has {size} bytes, at most {most} are accepted")
        try:
            return _read(file.fileno(), most, path, error)
        except OSError as reason:
            if isinstance(reason, ActscopeError):
                raise
            raise error(f"{path}: cannot be read: {reason.strerror or reason}") from reason


def _read(fd: int, most: int, path: Path, error: type[ActscopeError]) -> bytes:
    """Read to the end: the size that was asked for may be of a file that grows, or of /proc, where it is 0."""
    pieces: list[bytes] = []
    have = 0
    while piece := os.read(fd, _PIECE):
        pieces.append(piece)
        have += len(piece)
        if have > most:
            raise error(f"{path}: has more than {most} bytes, which are accepted")
    return b"".join(pieces)
