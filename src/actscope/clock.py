"""The common clock: every time stamp of actscope is in nanoseconds of CLOCK_MONOTONIC.

CLOCK_MONOTONIC is shared by all processes of a machine and never steps, so rows, tokens and system metrics line up
on it. A `ClockPair`, read from both clocks back to back, converts it to wall time for people and for other machines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from actscope.runtime.boot import boot_id


def monotonic_ns() -> int:
    """Return CLOCK_MONOTONIC in nanoseconds: comparable between processes of one boot."""
    return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class ClockPair:
    """One instant on both clocks, with the id of the boot for which the monotonic time is valid."""

    monotonic_ns: int
    wall_ns: int
    boot_id: str

    def wall_of(self, monotonic_ns: int) -> int:
        """Convert a monotonic time stamp of the same boot to wall time, in ns since the Unix epoch."""
        return self.wall_ns + (monotonic_ns - self.monotonic_ns)


def clock_pair() -> ClockPair:
    """Read both clocks: the wall clock once, between two readings of the monotonic clock, which are averaged."""
    before = time.monotonic_ns()
    wall = time.time_ns()
    after = time.monotonic_ns()
    return ClockPair((before + after) // 2, wall, boot_id())
