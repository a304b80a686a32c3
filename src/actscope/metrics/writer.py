"""Writing lines to a file without waiting for the disk, which may be what is being measured."""

from __future__ import annotations

import logging
import os
import queue
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from actscope.errors import MetricsError
from actscope.runtime.publish import sync_directory

_log = logging.getLogger(__name__)
_MOST_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class WriterCounts:
    """What a writer has done.

    Attributes:
        written: Lines in the file.
        dropped: Lines that found the queue full, because the disk did not keep up.
    """

    written: int = 0
    dropped: int = 0


class LineWriter:
    """Appends JSON lines to a file from a thread of its own, several at once and each whole.

    A file that ends in half a line (its writer was killed) gets a line break first. The file has mode 0600.

    Args:
        path: The file.
        flush_every: Number of lines to write at once.
        fsync: Make them durable each time.
        rotate_bytes: Size from which the file is renamed to `<name>.1`, that one to `<name>.2` and so on. 0: never.
        keep: Number of renamed files that are kept.

    Raises:
        MetricsError: The file cannot be opened, or is no regular file.
    """

    def __init__(
        self, path: Path, *, flush_every: int = 12, fsync: bool = False, rotate_bytes: int = 0, keep: int = 8
    ) -> None:
        self._path, self._every, self._fsync = path, flush_every, fsync
        self._rotate, self._keep = rotate_bytes, keep
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._written = self._dropped = 0
        self._error: MetricsError | None = None
        self._fd = _open(path)
        self._size = os.fstat(self._fd).st_size
        self._repair_end()
        self._thread = threading.Thread(target=self._run, name="actscope-lines", daemon=True)
        self._thread.start()

    def put(self, line: msgspec.Struct) -> None:
        """Hand over one line. It is in the file after `flush_every` lines, or when the writer is closed.

        Raises:
            MetricsError: An earlier line could not be written.
        """
        if self._error is not None:
            raise self._error
        if self._waiting.qsize() >= _MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.put(msgspec.json.encode(line) + b"\n")

    def counts(self) -> WriterCounts:
        """Return what was written and dropped so far."""
        return WriterCounts(self._written, self._dropped)

    def close(self) -> None:
        """Write the rest and close the file. Idempotent.

        Raises:
            MetricsError: A line could not be written.
        """
        if self._fd < 0:
            return
        self._waiting.put(None)
        self._thread.join()
        os.close(self._fd)
        self._fd = -1
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        batch: list[bytes] = []
        while True:
            line = self._waiting.get()
            if line is not None:
                batch.append(line)
            if batch and (line is None or len(batch) >= self._every):
                try:
                    self._write(b"".join(batch))
                    self._written += len(batch)
                except OSError as error:
                    self._error = MetricsError(
                        f"{self._path}: cannot be written: {error.strerror}: free some space, or use --output"
                    )
                    return
                batch.clear()
            if line is None:
                return

    def _write(self, data: bytes) -> None:
        """Append whole lines. Lines of which only a part could be written are taken back."""
        if self._rotate and self._size and self._size + len(data) > self._rotate:
            self._begin_new_file()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        if self._fsync:
            os.fsync(self._fd)

    def _begin_new_file(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                os.replace(older, self._numbered(number + 1))
        os.replace(self._path, self._numbered(1))
        fresh = _open(self._path)
        os.close(self._fd)
        self._fd, self._size = fresh, 0
        if self._fsync:
            sync_directory(self._path.parent)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _repair_end(self) -> None:
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            _log.warning("%s ends in half a line, of a writer that was killed; a reader leaves it out", self._path)
            os.write(self._fd, b"\n")
            self._size += 1


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MetricsError(f"{path}: cannot be opened: {error.strerror}: choose another file with --output") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise MetricsError(f"{path}: expected a regular file: choose another with --output")
    return fd
