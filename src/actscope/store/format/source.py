"""File source: windowed reads by offset, for files that may be short, growing or damaged."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from actscope.errors import RecordingError
from actscope.store.format.checksum import crc32c_of

WINDOW = 1 << 16
STRIDE = 4 << 20  # window of a sequential pass


class Source:
    """Read-only file with a window buffer. Not thread-safe.

    Reads with pread: with mmap, truncation of the file by another process would raise SIGBUS.
    """

    def __init__(self, path: Path, window: int = WINDOW) -> None:
        self.path = path
        self._window = window
        self._start = 0
        self._data = memoryview(b"")
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed("opening", error) from error

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def size(self) -> int:
        """Return the current size of the file, in bytes."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise self._failed("asking for the size", error) from error

    def take(self, offset: int, length: int) -> memoryview:
        """Return up to `length` bytes at `offset`, fewer at the end of the file. The view stays valid after later reads."""
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            self._fill(offset, min(max(length, self._window), max(self.size() - offset, 0)))
            at = 0
        return self._data[at : at + length]

    def crc32c(self, offset: int, length: int) -> int:
        """Return the CRC32C of a byte range, read window by window. Excludes bytes beyond the end of the file."""
        crc, end = 0, offset + length
        while offset < end:
            part = self.take(offset, min(self._window, end - offset))
            if not part:
                break
            crc, offset = crc32c_of((part,), crc), offset + len(part)
        return crc

    def nonzero(self, offset: int, end: int) -> bool:
        """Return whether any byte in `offset..end` is not zero."""
        while offset < end:
            part = self.take(offset, min(self._window, end - offset))
            if not part:
                return False
            if part.tobytes().strip(b"\0"):
                return True
            offset += len(part)
        return False

    def _fill(self, offset: int, length: int) -> None:
        parts: list[bytes] = []
        wanted, at = length, offset
        try:
            while wanted > 0 and (part := os.pread(self._fd, wanted, at)):
                parts.append(part)
                wanted, at = wanted - len(part), at + len(part)
        except OSError as error:
            raise self._failed(f"reading {length} bytes at {offset}", error) from error
        self._start, self._data = offset, memoryview(b"".join(parts) if len(parts) != 1 else parts[0])

    def _failed(self, doing: str, error: OSError) -> RecordingError:
        return RecordingError(f"{self.path}: {doing} failed: {error.strerror or error}")
