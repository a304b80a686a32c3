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

    Pass `n` is in slot `n % capacity`. The sampling of a pass is often told by a later step, so a slot is completed then.
    """

    def __init__(self, capacity: int = _PASSES) -> None:
        self._capacity = capacity
        self._slots = np.zeros((capacity, _FIELDS), np.int64)

    def take(self, step: StepRecord) -> None:
        """Take the times of a step. A step without rows tells of the pass with its number, or of none."""
        times, number = step.times, step.number
        if times.scheduled_ns:
            prompt = sum(
                min(s.n_rows, s.n_prompt - s.first_position) for s in step.spans if s.first_position < s.n_prompt
            )
            self._slots[number % self._capacity] = (
                *(number, *times[:3], step.time_ns, times.sampling_ns, times.sampled_ns),
                *(len(step.rows) + step.dropped_rows, prompt, sum(1 for span in step.spans if span.n_rows)),
            )
            self._complete(number - 1, times.before_sampling_ns, times.before_sampled_ns)
        else:
            self._complete(number, times.sampling_ns, times.sampled_ns)

    def _complete(self, number: int, sampling_ns: int, sampled_ns: int) -> None:
        slot = self._slots[number % self._capacity]
        if sampled_ns and slot[0] == number:
            slot[_SAMPLING : _SAMPLING + 2] = sampling_ns, sampled_ns

    def get(self, number: int) -> TimedPass | None:
        """Return a pass, or None if it is not known, or no longer."""
        slot = self._slots[number % self._capacity].tolist()
        return TimedPass._make(slot) if slot[0] == number and slot[_SCHEDULED] else None

    def between(self, start_ns: int, end_ns: int) -> list[TimedPass]:
        """Return the known passes that lie, at least in part, in a span of time, in order."""
        slots = self._slots
        over = slots[:, _ENDED : _SAMPLING + 2].max(axis=1)
        found = slots[(over > start_ns) & (slots[:, _SCHEDULED] < end_ns)]
        return [TimedPass._make(slot) for slot in found[found[:, 0].argsort()].tolist()]
