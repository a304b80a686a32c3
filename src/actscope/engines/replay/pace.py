"""Pacing of a replay: write each step when it is due, and never so early that a reader could miss one.

A ring overwrites its oldest rows without waiting for readers, so the replay must wait. Two rules:

* A lap of the ring takes at least about LAP_S: with 65,536 rows, steps and spans that is at most 32,768 of each per second. A
  reader that polls a little more often than that misses nothing; the gateway polls every 3 to 20 ms, a hundred times as often.
* If the reader's count of steps is known (`taken`), at most BURST_STEPS steps, or half of the ring's rows, are written ahead
  of it. Then the replay waits until the reader has taken them all, and pauses for BREATH_S. Nothing is lost, however slow the
  reader is, as long as it makes progress within PATIENCE_S.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from actscope.ring.layout import RingSpec

LAP_S = 2.0
#: Seconds without progress after which a reader is no longer waited for.
PATIENCE_S = 5.0
#: Steps written ahead of a known reader: about 50 ms of the gateway's time.
BURST_STEPS = 1024
#: Pause in seconds for the reader's other work after each burst. Also the tolerance of the first rule.
BREATH_S = 0.005
#: Interval in seconds of the ring's heartbeat while nothing is written.
BEAT_S = 5.0
_POLL_S = 0.002

#: Returns the number of steps that the reader has taken out of the ring, or None while it is not attached.
Taken = Callable[[], int | None]


class Pace:
    """Rate limiter of the thread that writes the ring. `stop` ends every wait."""

    def __init__(self, spec: RingSpec, stop: threading.Event, beat: Callable[[], None], taken: Taken | None) -> None:
        self._spec = spec
        self._stop = stop
        self._beat = beat
        self._taken = taken
        self._lap = 0.0  # earliest time of the next step by the first rule
        self._steps = 0
        self._ahead_rows = 0
        self._ahead_steps = 0
        self._last_taken = 0
        self._moved = 0.0

    def attached(self) -> bool:
        """Wait until the reader has attached. Returns False if stopped, and True at once if no reader is known."""
        return self._until(lambda: self._taken is None or self._taken() is not None)

    def wait(self, due: float, n_rows: int, n_spans: int) -> bool:
        """Wait until a step that is due at `due`, in time.monotonic() seconds, may be written. Returns False if stopped."""
        now = time.monotonic()
        ready = max(due, self._lap if self._lap - now > BREATH_S else 0.0)
        if ready > now and not self._sleep_until(ready):
            return False
        if not self._room(n_rows):
            return False
        spec, now = self._spec, time.monotonic()
        share = max(n_rows / spec.row_capacity, n_spans / spec.span_capacity, 1 / spec.step_capacity)
        self._lap = max(self._lap, now) + LAP_S * share
        self._steps += 1
        self._ahead_steps += 1
        self._ahead_rows += n_rows
        return not self._stop.is_set()

    def _room(self, n_rows: int) -> bool:
        """Apply the second rule. A reader without progress for PATIENCE_S is not waited for: it has left, or restarted."""
        if self._taken is None:
            return True
        full = self._ahead_rows + n_rows > self._spec.row_capacity // 2
        if self._ahead_steps and (full or self._ahead_steps >= BURST_STEPS):
            if not self.drained():
                return False
            self._ahead_rows = self._ahead_steps = 0
            return not self._stop.wait(BREATH_S)
        return True

    def drained(self) -> bool:
        """Wait until the reader has taken every step or makes no progress for PATIENCE_S. Returns False if stopped."""
        self._moved = time.monotonic()
        return self._until(self._caught_up)

    def _caught_up(self) -> bool:
        if self._taken is None:
            return True
        now, taken = time.monotonic(), self._taken() or 0
        if taken != self._last_taken:
            self._last_taken, self._moved = taken, now
        return taken >= self._steps or now - self._moved > PATIENCE_S

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition. Returns False if stopped."""
        beat = time.monotonic() + BEAT_S
        while not condition():
            if self._stop.wait(_POLL_S):
                return False
            if time.monotonic() > beat:
                self._beat()
                beat += BEAT_S
        return not self._stop.is_set()

    def _sleep_until(self, when: float) -> bool:
        while (left := when - time.monotonic()) > 0:
            if self._stop.wait(min(left, BEAT_S)):
                return False
            if left > BEAT_S:
                self._beat()
        return True
