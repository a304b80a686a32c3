"""The latest passes of one engine and when they crossed its borders, as its ring tells."""

from __future__ import annotations

import numpy as np

from actscope.metrics.timeline.stamps import TimedPass
from actscope.ring.host import StepRecord

#: Passes that are remembered: 10 minutes of 100 passes a second, 5 MB. Memory is used from the first pass in a slot on.
_PASSES = 1 << 16
_FIELDS = len(TimedPass._fields)
_SCHEDULED = TimedPass._fields.index("scheduled_ns")
_ENDED = TimedPass._fields.index("ended_ns")
_SAMPLING = TimedPass._fields.index("sampling_ns")


class PassLedger:
    """The latest `capacity` passes of one part of an engine, by number. Bounded; used on the event loop's thread.

    Pass `n` is in column `n % capacity` of int64 [fields, capacity]: a field of all passes is contiguous. The sampling of a pass
    is often told by a later step, so a column is completed then.
    """

    def __init__(self, capacity: int = _PASSES) -> None:
        self._capacity = capacity
        self._slots = np.zeros((_FIELDS, capacity), np.int64)

    def take(self, step: StepRecord) -> None:
        """Take the times of a step. A step without rows tells of the pass with its number, or of none."""
        times, number = step.times, step.number
        if times.scheduled_ns:
            prompt = sum(
                min(s.n_rows, s.n_prompt - s.first_position) for s in step.spans if s.first_position < s.n_prompt
            )
            self._slots[:, number % self._capacity] = (
                *(number, *times[:3], step.time_ns, times.sampling_ns, times.sampled_ns),
                *(len(step.rows) + step.dropped_rows, prompt, sum(1 for span in step.spans if span.n_rows)),
            )
            self._complete(number - 1, times.before_sampling_ns, times.before_sampled_ns)
        else:
            self._complete(number, times.sampling_ns, times.sampled_ns)

    def _complete(self, number: int, sampling_ns: int, sampled_ns: int) -> None:
        slots, at = self._slots, number % self._capacity
        if sampled_ns and slots[0, at] == number:
            slots[_SAMPLING, at], slots[_SAMPLING + 1, at] = sampling_ns, sampled_ns

    def get(self, number: int) -> TimedPass | None:
        """Return a pass, or None if it is not known, or no longer."""
        slot = self._slots[:, number % self._capacity].tolist()
        return TimedPass._make(slot) if slot[0] == number and slot[_SCHEDULED] else None

    def between(self, start_ns: int, end_ns: int) -> np.ndarray:
        """Return a copy of the known passes that lie, at least in part, in a span of time: int64 [n, fields], see `timed`.

        It takes under a millisecond; making `TimedPass` of many rows takes longer, and need not be done on the event loop.
        """
        slots = self._slots
        over = np.maximum.reduce(slots[_ENDED : _SAMPLING + 2])
        return np.ascontiguousarray(slots[:, (over > start_ns) & (slots[_SCHEDULED] < end_ns)].T)


def timed(rows: np.ndarray) -> list[TimedPass]:
    """Return passes from rows of a ledger, in order."""
    return [TimedPass._make(row) for row in rows[rows[:, 0].argsort()].tolist()]
