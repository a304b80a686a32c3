"""Queues of rows that wait to be encoded: one for each site, under a common byte budget.

put ──▶ queue.waiting ──(a full block, or too old, or the budget is exhausted)──▶ ready ──▶ worker
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class QueuedRows:
    """Rows [n, d] of one step at one site. `dtype` names their source dtype (bfloat16 is carried as uint16)."""

    first_row: int
    rows: np.ndarray
    dtype: str
    step: int
    time_ns: int

    @property
    def after(self) -> int:
        """Return the number of the row after the last one."""
        return self.first_row + len(self.rows)


@dataclass(slots=True, eq=False)
class SiteQueue:
    """FIFO of one site's pieces, in the order of their rows. At most one worker at a time takes from it."""

    index: int
    site: str
    waiting: deque[QueuedRows] = field(default_factory=deque)
    bytes: int = 0
    since: float = 0.0
    taken: int | None = None  # first row that a worker is encoding
    pushed: bool = False  # to be emptied although it holds less than a block


class SiteQueues:
    """Queues of all sites of a recording. Thread-safe; the lock is never held while encoding."""

    def __init__(self, sites: tuple[str, ...], *, budget: int, block_bytes: int) -> None:
        self._queues = {site: SiteQueue(index, site) for index, site in enumerate(sites)}
        self._budget = budget
        self._block_bytes = block_bytes
        self._changed = threading.Condition()
        self._closed = False
        self.held = 0  # bytes in queues and with workers
        self.held_max = 0
        self.seconds_blocked = 0.0

    def __contains__(self, site: str) -> bool:
        return site in self._queues

    # --- from the model's thread --------------------------------------------------------------------------------------

    def offer(self, site: str, piece: QueuedRows, *, wait: bool) -> bool:
        """Enqueue a piece and return True. Return False when there is no room and `wait` is False, or after `close`.

        With `wait`, blocks until there is room. A piece larger than the whole budget is accepted when nothing else is held.
        """
        size = piece.rows.nbytes
        with self._changed:
            if not self._has_room(size):
                self._push_all()
                if not wait or not self._wait_for_room(size):
                    return False
            if self._closed:
                return False
            queue = self._queues[site]
            if not queue.waiting:
                queue.since = time.monotonic()
            _insert(queue.waiting, piece)
            queue.bytes += size
            self.held += size
            self.held_max = max(self.held_max, self.held)
            if queue.bytes >= self._block_bytes and queue.taken is None:
                self._changed.notify_all()
        return True

    def _has_room(self, size: int) -> bool:
        return self.held == 0 or self.held + size <= self._budget

    def _wait_for_room(self, size: int) -> bool:
        begin = time.monotonic()
        while not (self._has_room(size) or self._closed):
            self._changed.wait()
        self.seconds_blocked += time.monotonic() - begin
        return not self._closed

    # --- from the workers -----------------------------------------------------------------------------------------------

    def take(self) -> tuple[SiteQueue, list[QueuedRows]] | None:
        """Wait for the next block and return its queue and pieces: contiguous rows of one width and dtype.

        Returns None when the queues are closed and empty. The caller must call `give_back`.
        """
        with self._changed:
            while (queue := self._ready()) is None:
                if self._closed and not any(queue.waiting for queue in self._queues.values()):
                    return None
                self._changed.wait()
            pieces = self._cut(queue)
            queue.taken = min(piece.first_row for piece in pieces)
            return queue, pieces

    def _ready(self) -> SiteQueue | None:
        free = [queue for queue in self._queues.values() if queue.waiting and queue.taken is None]
        asked = [queue for queue in free if queue.pushed or self._closed or queue.bytes >= self._block_bytes]
        return min(asked, key=lambda queue: queue.since, default=None)

    def _cut(self, queue: SiteQueue) -> list[QueuedRows]:
        pieces = [queue.waiting.popleft()]
        size = pieces[0].rows.nbytes
        while queue.waiting and size < self._block_bytes and _continues(pieces[-1], queue.waiting[0]):
            pieces.append(queue.waiting.popleft())
            size += pieces[-1].rows.nbytes
        queue.bytes -= size
        queue.since = time.monotonic()
        queue.pushed = queue.pushed and bool(queue.waiting)
        return pieces

    def give_back(self, queue: SiteQueue, pieces: list[QueuedRows]) -> None:
        """Release the pieces' bytes from the budget, after they were appended to the store or lost."""
        with self._changed:
            self.held -= sum(piece.rows.nbytes for piece in pieces)
            queue.taken = None
            self._changed.notify_all()

    # --- from any thread ------------------------------------------------------------------------------------------------

    def push_older_than(self, seconds: float) -> None:
        """Mark for emptying the queues that have waited at least `seconds`."""
        limit = time.monotonic() - seconds
        with self._changed:
            for queue in self._queues.values():
                queue.pushed = queue.pushed or bool(queue.waiting and queue.since <= limit)
            self._changed.notify_all()

    def drain(self, upto_row: int) -> None:
        """Wait until every accepted row before `upto_row` was given back by a worker."""
        with self._changed:
            self._push_all()
            self._changed.wait_for(lambda: self._first_held(upto_row) >= upto_row)

    def first_held(self, otherwise: int) -> int:
        """Return the first row that is queued or being encoded, or `otherwise` if there is none before it."""
        with self._changed:
            return self._first_held(otherwise)

    def _first_held(self, otherwise: int) -> int:
        waiting = (queue.waiting[0].first_row for queue in self._queues.values() if queue.waiting)
        taken = (queue.taken for queue in self._queues.values() if queue.taken is not None)
        return min([otherwise, *waiting, *taken]) if self.held else otherwise

    def _push_all(self) -> None:
        for queue in self._queues.values():
            queue.pushed = bool(queue.waiting)
        self._changed.notify_all()

    def close(self) -> None:
        """Refuse further pieces. Workers continue until the queues are empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _insert(waiting: deque[QueuedRows], piece: QueuedRows) -> None:
    """Insert a piece in the order of rows. Pieces arrive out of order only when several threads run the model."""
    late = []
    while waiting and waiting[-1].first_row > piece.first_row:
        late.append(waiting.pop())
    waiting.append(piece)
    waiting.extend(reversed(late))


def _continues(before: QueuedRows, after: QueuedRows) -> bool:
    alike = before.dtype == after.dtype and before.rows.shape[1] == after.rows.shape[1]
    return alike and before.after == after.first_row
