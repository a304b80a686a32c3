"""Reading a file that may be short, growing or damaged: by offset, through a window, without mapping it."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from actscope.errors import RecordingError
from actscope.store.format.checksum import crc32c_of

WINDOW = 1 << 16
STRIDE = 4 << 20  # of a pass over many bytes


class Source:
    """One file. A mapping would end the process (SIGBUS) when somebody cuts the file, so this reads with pread.

    Not for two threads at once.
    """

    def __init__(self, path: Path, window: int = WINDOW) -> None:
        self.path = path
        self._window = window
        self._start = 0
        self._data = memoryview(b"")
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise self._failed("opening", error) from error

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def size(self) -> int:
        """Bytes of the file now."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise self._failed("asking for the size", error) from error

    def take(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes at `offset`, fewer at the end of the file; valid as long as one keeps it."""
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            self._fill(offset, min(max(length, self._window), max(self.size() - offset, 0)))
            at = 0
        return self._data[at : at + length]

    def crc32c(self, offset: int, length: int) -> int:
        """CRC32C of bytes that need not fit into memory; those beyond the end of the file are left out."""
        crc, end = 0, offset + length
        while offset < end:
            part = self.take(offset, min(self._window, end - offset))
            if not part:
                break
            crc, offset = crc32c_of((part,), crc), offset + len(part)
        return crc

    def nonzero(self, offset: int, end: int) -> bool:
        """Whether any byte of a stretch is not zero."""
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
