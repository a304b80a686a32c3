"""Where rows wait: one lane for each site, under one budget of bytes.

put ──▶ lane.waiting ──(a block's worth, or too old, or memory is short)──▶ ready ──▶ a worker
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class QueuedRows:
    """Rows of one step at one site: [n, d], of the dtype `dtype`."""

    first_row: int
    rows: np.ndarray
    dtype: str
    step: int
    time_ns: int

    @property
    def after(self) -> int:
        return self.first_row + len(self.rows)


@dataclass(slots=True, eq=False)
class SiteQueue:
    """One site's pieces, in the order of their rows. Only one worker at a time has the lane."""

    index: int
    site: str
    waiting: deque[QueuedRows] = field(default_factory=deque)
    bytes: int = 0
    since: float = 0.0
    taken: int | None = None  # the first row that a worker has in hand
    pushed: bool = False  # asked to be emptied, however little there is


class SiteQueues:
    """The lanes of a recording. Thread-safe; the lock is held for a few operations on deques, never while encoding."""

    def __init__(self, sites: tuple[str, ...], *, budget: int, block_bytes: int) -> None:
        self._lanes = {site: SiteQueue(index, site) for index, site in enumerate(sites)}
        self._budget = budget
        self._block_bytes = block_bytes
        self._changed = threading.Condition()
        self._closed = False
        self.held = 0  # bytes in lanes and with workers
        self.held_max = 0
        self.seconds_blocked = 0.0

    def __contains__(self, site: str) -> bool:
        return site in self._lanes

    # --- from the model's thread --------------------------------------------------------------------------------------

    def offer(self, site: str, piece: QueuedRows, *, wait: bool) -> bool:
        """Take a piece in. False when there is no room and `wait` is false, or when the lanes are closed.

        A piece that is larger than the whole budget is taken when nothing else is held.
        """
        size = piece.rows.nbytes
        with self._changed:
            if not self._has_room(size):
                self._push_all()
                if not wait or not self._wait_for_room(size):
                    return False
            if self._closed:
                return False
            lane = self._lanes[site]
            if not lane.waiting:
                lane.since = time.monotonic()
            _insert(lane.waiting, piece)
            lane.bytes += size
            self.held += size
            self.held_max = max(self.held_max, self.held)
            if lane.bytes >= self._block_bytes and lane.taken is None:
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
        """The next block's pieces, without gaps and of one shape; waits for them. None when all is done and closed.

        `give_back` must follow.
        """
        with self._changed:
            while (lane := self._ready()) is None:
                if self._closed and not any(lane.waiting for lane in self._lanes.values()):
                    return None
                self._changed.wait()
            pieces = self._cut(lane)
            lane.taken = min(piece.first_row for piece in pieces)
            return lane, pieces

    def _ready(self) -> SiteQueue | None:
        free = [lane for lane in self._lanes.values() if lane.waiting and lane.taken is None]
        asked = [lane for lane in free if lane.pushed or self._closed or lane.bytes >= self._block_bytes]
        return min(asked, key=lambda lane: lane.since, default=None)

    def _cut(self, lane: SiteQueue) -> list[QueuedRows]:
        pieces = [lane.waiting.popleft()]
        size = pieces[0].rows.nbytes
        while lane.waiting and size < self._block_bytes and _continues(pieces[-1], lane.waiting[0]):
            pieces.append(lane.waiting.popleft())
            size += pieces[-1].rows.nbytes
        lane.bytes -= size
        lane.since = time.monotonic()
        lane.pushed = lane.pushed and bool(lane.waiting)
        return pieces

    def give_back(self, lane: SiteQueue, pieces: list[QueuedRows]) -> None:
        """The pieces are with the store: their memory is free again."""
        with self._changed:
            self.held -= sum(piece.rows.nbytes for piece in pieces)
            lane.taken = None
            self._changed.notify_all()

    # --- from anybody ---------------------------------------------------------------------------------------------------

    def push_older_than(self, seconds: float) -> None:
        """Have the lanes emptied whose oldest piece has waited so long."""
        limit = time.monotonic() - seconds
        with self._changed:
            for lane in self._lanes.values():
                lane.pushed = lane.pushed or bool(lane.waiting and lane.since <= limit)
            self._changed.notify_all()

    def drain(self, upto_row: int) -> None:
        """Return when every row before `upto_row` that was accepted is with the store."""
        with self._changed:
            self._push_all()
            self._changed.wait_for(lambda: self._first_held(upto_row) >= upto_row)

    def first_held(self, otherwise: int) -> int:
        """The first row that is not yet with the store; `otherwise` where there is none before it."""
        with self._changed:
            return self._first_held(otherwise)

    def _first_held(self, otherwise: int) -> int:
        waiting = (lane.waiting[0].first_row for lane in self._lanes.values() if lane.waiting)
        taken = (lane.taken for lane in self._lanes.values() if lane.taken is not None)
        return min([otherwise, *waiting, *taken]) if self.held else otherwise

    def _push_all(self) -> None:
        for lane in self._lanes.values():
            lane.pushed = bool(lane.waiting)
        self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more; workers go on until the lanes are empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _insert(waiting: deque[QueuedRows], piece: QueuedRows) -> None:
    """Keep the pieces in the order of their rows; only where several threads run the model do they come in another."""
    late = []
    while waiting and waiting[-1].first_row > piece.first_row:
        late.append(waiting.pop())
    waiting.append(piece)
    waiting.extend(reversed(late))


def _continues(before: QueuedRows, after: QueuedRows) -> bool:
    alike = before.dtype == after.dtype and before.rows.shape[1] == after.rows.shape[1]
    return alike and before.after == after.first_row
