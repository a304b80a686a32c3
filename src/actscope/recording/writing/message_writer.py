"""Appends a recording's messages to its store, and remembers the failure that stops a recording."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from actscope.clock import monotonic_ns
from actscope.errors import RecordingPoisoned
from actscope.recording.format import records
from actscope.recording.format.index_keys import Kind, channel_of, key
from actscope.store import Store

log = logging.getLogger("actscope.recording")


class MessageWriter:
    """Writer of one store's messages. Thread-safe.

    After a failure every method that needs the disk raises RecordingPoisoned. The first failure is logged; later ones are not.

    Attributes:
        path: Directory of the recording.
        store: The store. Only this object appends to it.
        last_number: Highest message number so far.
        failure: The error that stopped the recording, or None.
    """

    def __init__(self, store: Store) -> None:
        self.path: Path = store.path
        self.store = store
        self.last_number = 0
        self.failure: Exception | None = None
        self._lock = threading.Lock()

    def send(self, channel: str, header: bytes, parts: list[bytes | memoryview], time_ns: int) -> None:
        """Append a message. Blocks while the store's buffers are full. Raises RecordingPoisoned."""
        with self.noticing_failure():
            number = self.store.append(channel, header, parts, time_ns)
        with self._lock:
            self.last_number = max(self.last_number, number)

    def note(self, kind: Kind, record: msgspec.Struct) -> None:
        """Append a small record. Raises RecordingPoisoned."""
        self.send(channel_of(kind), key(kind), [records.write(record)], monotonic_ns())

    def fail(self, error: Exception) -> None:
        """Stop the recording because of `error`, unless it has stopped already."""
        with self._lock:
            first, self.failure = self.failure is None, self.failure or error
        if first:
            log.error("%s: recording has stopped: %s", self.path, error)

    def check_alive(self) -> None:
        """Raise RecordingPoisoned if the recording has stopped."""
        if self.failure is not None:
            raise self._stopped(self.failure) from self.failure

    @contextmanager
    def noticing_failure(self) -> Iterator[None]:
        """Stop the recording when the block raises RecordingPoisoned, and raise it with the recording's path."""
        try:
            yield
        except RecordingPoisoned as error:
            self.fail(error)
            raise self._stopped(error) from error

    def _stopped(self, failure: Exception) -> RecordingPoisoned:
        return RecordingPoisoned(f"{self.path}: recording has stopped: {failure}")
