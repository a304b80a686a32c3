"""Segment file of the writer: O_DIRECT where the file system supports it, never written again after an error."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from actscope.errors import RecordingError
from actscope.runtime.publish import sync_directory
from actscope.store.files import naming, segment_files
from actscope.store.format.layout import segment_name
from actscope.store.options import BLOCK, StoreOptions

LEAST = 1 << 20  # bytes of the first reservation
KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: the file length excludes reserved blocks, so readers do not see their zeros


def choose_direct(directory: Path, wanted: str) -> tuple[bool, str]:
    """Return whether to write with O_DIRECT, and why. Raises RecordingError when it is required and not supported."""
    if wanted == "no":
        return False, "direct='no'"
    refused = _probe(directory)
    if not refused:
        return True, f"the file system took a direct write of {BLOCK} bytes"
    if wanted == "yes":
        raise RecordingError(f"{directory}: direct='yes', and {refused}; use direct='auto'")
    return False, refused


def _probe(directory: Path) -> str:
    path = directory / "probe.tmp"
    with naming(path, "creating"):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW)
        try:
            with mmap.mmap(-1, BLOCK) as block:
                os.pwrite(fd, block, 0)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise RecordingError(f"{path}: a first write failed: {error.strerror}") from error
        return f"the file system refuses O_DIRECT ({errno.errorcode[error.errno]})"
    finally:
        path.unlink(missing_ok=True)
    return ""


def preallocate(fd: int, start: int, end: int) -> None:
    """Reserve disk blocks without changing the file length. Best effort: errors are ignored."""
    c = ctypes.CDLL(None)
    c.fallocate(ctypes.c_int(fd), ctypes.c_int(KEEP_SIZE), ctypes.c_int64(start), ctypes.c_int64(end - start))


class SegmentFile:
    """A new segment file. Methods raise the system's OSError; do not write after one."""

    def __init__(self, directory: Path, number: int, options: StoreOptions, direct: bool) -> None:
        self.number = number
        self._direct = direct
        self._end = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)
        self._fd = os.open(directory / segment_name(number), flags, 0o600)
        self._limit = options.segment_bytes if options.preallocate else 0
        self._reserved = 0
        try:
            sync_directory(directory)
        except OSError:
            self.close()
            raise

    def write(self, parts: Sequence[memoryview], offset: int) -> None:
        """Append the parts to the file. A short write continues where it stopped; a direct one, at the last whole block."""
        assert offset == self._end, "a segment is written from its start to its end, each byte once"
        total, done = sum(map(len, parts)), 0
        self._reserve(offset + total)
        while done < total:
            start = done // BLOCK * BLOCK if self._direct else done
            rest = _from(parts, start)
            count = (
                os.pwritev(self._fd, rest, offset + start)
                if len(rest) > 1
                else os.pwrite(self._fd, rest[0], offset + start)
            )
            if start + count <= done:
                raise OSError(errno.EIO, f"a write of {total - start} bytes at {offset + start} got no further")
            done = start + count
        self._end = offset + total

    def _reserve(self, end: int) -> None:
        """Reserve twice the needed length, up to the limit: few calls for large segments, little space for small ones."""
        if self._reserved < end and self._reserved < self._limit:
            ahead = min(max(2 * end, LEAST), self._limit)
            preallocate(self._fd, self._reserved, ahead)
            self._reserved = ahead

    def sync(self) -> None:
        """Make the written bytes durable (fdatasync)."""
        os.fdatasync(self._fd)

    def finish(self, length: int) -> None:
        """Truncate to the final length, which frees reserved blocks, and fsync."""
        os.ftruncate(self._fd, length)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _from(parts: Sequence[memoryview], start: int) -> list[memoryview]:
    rest = []
    for part in parts:
        if start < len(part):
            rest.append(part[start:])
        start = max(start - len(part), 0)
    return rest


def next_segment(directory: Path) -> int:
    """Return the highest segment number in the directory plus 1."""
    return max(segment_files(directory), default=0) + 1
