"""Spools: storage for the rows of recent steps, in memory or in unlinked files that vanish with the process."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actscope.errors import RecordingError, SettingsError

#: Half-open range of rows `(start, stop)` of a step.
Run = tuple[int, int]

_FILE = re.compile(r"flight-[0-9a-f]{16}\.rows")


class Spool(Protocol):
    """Storage for the arrays [n, d] of each step, addressed by ticket. Not thread-safe."""

    @property
    def where(self) -> str:
        """Return `memory` or the directory."""

    def put(self, arrays: list[np.ndarray]) -> Any:
        """Store the arrays of a step and return their ticket. Raises OSError when they cannot be stored."""

    def rows(self, ticket: Any, which: int, runs: Sequence[Run]) -> np.ndarray:
        """Return the concatenated rows of these runs of array `which`. Callers must not modify them."""

    def drop(self, ticket: Any) -> None:
        """Discard the arrays of a ticket."""

    def close(self) -> None:
        """Release all storage."""


class MemorySpool:
    """Spool in memory. Stores the arrays without a copy."""

    where = "memory"

    def put(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Keep the arrays themselves; the ticket is their list."""
        return arrays

    def rows(self, ticket: list[np.ndarray], which: int, runs: Sequence[Run]) -> np.ndarray:
        """Return the whole array without a copy, or a copy of a part.

        A view of a part would keep the whole step in memory, uncounted.
        """
        array = ticket[which]
        if len(runs) == 1 and runs[0] == (0, len(array)):
            return array
        return np.concatenate([array[start:stop] for start, stop in runs])

    def drop(self, ticket: list[np.ndarray]) -> None:
        """Release the arrays of a ticket."""
        ticket.clear()

    def close(self) -> None:
        """Do nothing: tickets own the arrays."""


@dataclass(slots=True, eq=False)
class _Segment:
    fd: int
    size: int = 0
    tickets: int = 0


@dataclass(frozen=True, slots=True)
class _Stored:
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[np.generic]


@dataclass(frozen=True, slots=True)
class _Ticket:
    segment: _Segment
    arrays: list[_Stored]


class DiskSpool:
    """Spool in files of about `segment_bytes`. A file is released once all of its tickets are dropped.

    The files are unlinked while in use, so their space is freed however the process ends. The directory must be private (0700).
    On start, leftover `flight-*.rows` files in it are deleted; other files are not touched.
    """

    def __init__(self, directory: str | os.PathLike[str], segment_bytes: int) -> None:
        self._directory = private_directory(Path(directory))
        self._segment_bytes = segment_bytes
        self._open: set[_Segment] = set()
        self._last: _Segment | None = None
        for left in self._directory.iterdir():
            if _FILE.fullmatch(left.name):
                left.unlink(missing_ok=True)

    @property
    def where(self) -> str:
        """Return the path of the directory."""
        return str(self._directory)

    @property
    def bytes(self) -> int:
        """Return the total size of the files, in bytes."""
        return sum(segment.size for segment in self._open)

    def put(self, arrays: list[np.ndarray]) -> _Ticket:
        """Append the arrays to the last file, and start a new file if it is full. Raises OSError if they cannot be written."""
        segment = self._last
        if segment is None or segment.size >= self._segment_bytes:
            segment = self._new_segment()
        stored, offset = [], segment.size
        for array in arrays:
            stored.append(_Stored(offset, (array.shape[0], array.shape[1]), array.dtype))
            offset += array.nbytes
        _write(segment.fd, [array.data.cast("B") for array in arrays if array.nbytes], segment.size)
        segment.size, segment.tickets = offset, segment.tickets + 1
        return _Ticket(segment, stored)

    def _new_segment(self) -> _Segment:
        path = self._directory / f"flight-{secrets.token_hex(8)}.rows"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        path.unlink(missing_ok=True)
        before, self._last = self._last, _Segment(fd)
        self._open.add(self._last)
        if before is not None:
            self._close_if_idle(before)
        return self._last

    def rows(self, ticket: _Ticket, which: int, runs: Sequence[Run]) -> np.ndarray:
        """Read the concatenated rows of these runs of array `which`. Raises OSError if they cannot be read."""
        stored = ticket.arrays[which]
        width = stored.shape[1]
        out = np.empty((sum(stop - start for start, stop in runs), width), stored.dtype)
        row_bytes, at = width * stored.dtype.itemsize, 0
        for start, stop in runs:
            part = out[at : at + stop - start]
            _read(ticket.segment.fd, part.data.cast("B"), stored.offset + start * row_bytes)
            at += stop - start
        return out

    def drop(self, ticket: _Ticket) -> None:
        """Discard the arrays of a ticket. A file without tickets is closed, or truncated if it is the last."""
        ticket.segment.tickets -= 1
        self._close_if_idle(ticket.segment)

    def _close_if_idle(self, segment: _Segment) -> None:
        if segment.tickets or segment not in self._open:
            return
        if segment is self._last:
            os.ftruncate(segment.fd, 0)
            segment.size = 0
            return
        self._open.discard(segment)
        os.close(segment.fd)

    def close(self) -> None:
        """Close all files, which frees their space."""
        for segment in self._open:
            os.close(segment.fd)
        self._open, self._last = set(), None


def _write(fd: int, parts: list[memoryview], offset: int) -> None:
    while parts:
        n = os.pwritev(fd, parts, offset)
        offset += n
        while parts and n >= len(parts[0]):
            n -= len(parts.pop(0))
        if n:
            parts[0] = parts[0][n:]


def _read(fd: int, into: memoryview, offset: int) -> None:
    while into:
        n = os.preadv(fd, [into], offset)
        if not n:
            raise RecordingError("a file of the flight recorder ends before the rows that were written to it")
        into, offset = into[n:], offset + n


def private_directory(path: Path) -> Path:
    """Return the directory, created with mode 0700 if missing.

    Raises:
        SettingsError: The path is not a directory, belongs to another user, or is accessible to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SettingsError(f"{path}: cannot store rows there: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SettingsError(
            f"{path}: expected a directory that belongs to this user and that no other user can access, found mode "
            f"{stat.S_IMODE(found.st_mode):04o}: chmod 700 it, or name one that does not exist yet"
        )
    return path
