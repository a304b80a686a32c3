"""Which rows are in the file, which are durable, and how far the last checkpoint reached."""

from __future__ import annotations

import threading
from collections import deque

from actscope.store import Store


class Acknowledgment:
    """How far a recording is written and durable, in rows. Thread-safe; the counts never go back.

    A milestone (rows, number) says that all rows before `rows` are in messages up to `number`. It is reached once the store has
    written (or synced) that message.

    Attributes:
        written: Rows before this one survive the death of this process.
        durable: Rows before this one also survive power loss.
        checkpointed: First row that the last checkpoint does not cover.
        checkpoints: Number of checkpoints.
    """

    def __init__(self, store: Store, next_row: int) -> None:
        self.written = self.durable = self.checkpointed = next_row
        self.checkpoints = 0
        self._store = store
        self._milestones: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def expect(self, rows: int, number: int) -> None:
        """Add a milestone. Milestones come in the order of their rows."""
        with self._lock:
            self._milestones.append((rows, number))

    def advance(self) -> None:
        """Move both counts over the milestones that the store has reached."""
        with self._lock:
            self.written = max([self.written, *(rows for rows, n in self._milestones if n <= self._store.written)])
            while self._milestones and self._milestones[0][1] <= self._store.durable:
                self.durable = max(self.durable, self._milestones.popleft()[0])

    def note_written(self, rows: int) -> None:
        """Note that all rows before `rows` are in the file."""
        with self._lock:
            self.written = max(self.written, rows)

    def note_durable(self, rows: int) -> None:
        """Note that all rows before `rows` are durable."""
        with self._lock:
            self.written, self.durable = max(self.written, rows), max(self.durable, rows)

    def note_checkpoint(self, rows: int) -> None:
        """Note that a checkpoint of all rows before `rows` was published."""
        with self._lock:
            self.checkpointed = max(self.checkpointed, rows)
            self.checkpoints += 1
