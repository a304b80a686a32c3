"""State shared by appenders and the I/O thread: queued and free buffers, written and durable positions, the first error."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition

from actscope.errors import RecordingPoisoned
from actscope.store.format.watermark import LogPosition
from actscope.store.writing.buffers import Buffer, PoolShape


class PipelineState:
    """Monitor of the write pipeline: free buffers -> (appender fills) -> queue -> (I/O thread writes) -> free buffers.

    All fields change under `changed`, except `accepted`, which only the holder of the append lock changes.

        accepted   number of the last message whose bytes are in buffers
        written    end of the last message whose bytes are in the file: survives kill -9
        durable    end of the last message that survives power loss
    """

    def __init__(self, shape: PoolShape, start: LogPosition) -> None:
        self.changed = Condition()
        self.shape = shape
        self._made = 0
        self._free: list[Buffer] = []
        self._queue: deque[Buffer] = deque()
        self.accepted = start.number
        self.written = self.durable = start
        self.error: Exception | None = None
        self.wanted = 0  # highest message number that a caller of `sync` waits for
        self.stopping = False
        self._asleep = False
        self.segments = self.syncs = self.bytes = self.buffered = self.buffered_max = 0
        self.seconds_blocked = 0.0

    def take(self) -> Buffer:
        """Return a free buffer, allocated on first use. Blocks while there is none. Raises RecordingPoisoned."""
        self.reserve(1)
        with self.changed:
            if self._free:
                return self._free.pop()
            self._made += 1
        return Buffer(self.shape.size)

    def reserve(self, length: int, held: Buffer | None = None) -> None:
        """Block until `length` bytes fit into the held buffer and the free ones, or until all other buffers are free.

        Raises:
            RecordingPoisoned: Writing has failed.
        """
        with self.changed:
            self._check()
            if self._roomy(length, held):
                return
            began = time.monotonic()
            try:
                while not self._roomy(length, held):
                    self.changed.wait()
                    self._check()
            finally:
                self.seconds_blocked += time.monotonic() - began

    def _roomy(self, length: int, held: Buffer | None) -> bool:
        free = len(self._free) + self.shape.count - self._made
        room, others = (held.room, self.shape.count - 1) if held else (0, self.shape.count)
        return free >= others or length <= room + free * self.shape.size

    def hand_over(self, buffer: Buffer) -> None:
        """Queue a buffer for the I/O thread."""
        with self.changed:
            self._queue.append(buffer)
            self.buffered += buffer.used
            self.buffered_max = max(self.buffered_max, self.buffered)
            self.changed.notify_all()

    def appended(self, number: int) -> None:
        """Advance `accepted`, and wake the I/O thread if it is waiting."""
        self.accepted = number
        if self._asleep:
            with self.changed:
                self.changed.notify_all()

    def next(self, deadline: Callable[[], float]) -> list[Buffer]:
        """Wait for queued buffers and return them, all of one segment. Empty when a commit or the stop is due.

        Returns up to half of the pool: on a busy machine the I/O thread is scheduled late, and the other half fills meanwhile.
        """
        with self.changed:
            while not self._queue and not self.stopping and not self.sync_due():
                self._asleep = True
                idle = self.accepted <= self.durable.number
                left = None if idle else deadline() - time.monotonic()
                if left is not None and left <= 0:
                    break  # a commit is due
                self.changed.wait(left)
            self._asleep = False
            return self._batch()

    def _batch(self) -> list[Buffer]:
        batch: list[Buffer] = []
        while self._queue and len(batch) < max(self.shape.count // 2, 1):
            batch.append(self._queue.popleft())
            if batch[-1].finish is not None:
                break
        return batch

    def sync_due(self) -> bool:
        """Return whether a caller of `sync` waits for a message that is written but not durable."""
        return self.durable.number < self.wanted <= self.written.number

    def recycle(self, batch: Sequence[Buffer], written: LogPosition) -> None:
        """Advance `written` and free the buffers of a finished write."""
        size = sum(buffer.used for buffer in batch)
        with self.changed:
            self.buffered -= size
            self.bytes += size
            self.written = written
            self._free += batch
            self.changed.notify_all()

    def committed(self, durable: LogPosition) -> None:
        """Advance `durable` after a group commit."""
        with self.changed:
            self.durable = durable
            self.syncs += 1
            self.changed.notify_all()

    def want(self, number: int) -> None:
        """Request that message `number` becomes durable."""
        with self.changed:
            self.wanted = max(self.wanted, number)
            self.changed.notify_all()

    def stop(self) -> None:
        """Make the I/O thread write the queue and end."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Poison the store. Only the first error is kept and reported."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def wait(self, reached: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Block until `reached()` is True.

        Raises:
            RecordingPoisoned: Writing failed first.
            TimeoutError: `timeout` seconds have passed.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: reached() or self.error is not None, timeout):
                raise TimeoutError(f"{what}: not within {timeout} s")
            if not reached():
                self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise RecordingPoisoned(
                f"writing failed: {self.error}; messages up to {self.written.number} are in the file, "
                f"up to {self.durable.number} durable; nothing more is written: make room or change the disk, recover, resume"
            ) from self.error
