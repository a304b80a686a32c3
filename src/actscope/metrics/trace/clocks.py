"""The clock of a trace: CLOCK_MONOTONIC of one boot, with one instant of it on the wall clock and on CLOCK_BOOTTIME."""

from __future__ import annotations

import time
from dataclasses import dataclass

from actscope.clock import ClockPair
from actscope.runtime.boot import boot_id


@dataclass(frozen=True, slots=True)
class TraceClock:
    """One instant on three clocks. `boottime_ns` is None where it is not known: in a trace of another boot or machine."""

    pair: ClockPair
    boottime_ns: int | None

    @classmethod
    def of(cls, pair: ClockPair) -> TraceClock:
        """Return the clock for times of the boot of a pair.

        CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC by the time that the machine was suspended. That is read now.
        """
        if pair.boot_id != boot_id():
            return cls(pair, None)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        suspended = boottime - (before + after) // 2
        # what is less than the readings themselves took is no suspend
        return cls(pair, pair.monotonic_ns + (suspended if suspended > 1_000_000 else 0))

    def monotonic_of(self, wall_ns: int) -> int:
        """Convert wall time to CLOCK_MONOTONIC. What the wall clock was corrected by since is the error."""
        return wall_ns - self.pair.wall_ns + self.pair.monotonic_ns
