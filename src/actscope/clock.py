"""The one clock: every time stamp of actscope is CLOCK_MONOTONIC nanoseconds plus the offset to wall time.

CLOCK_MONOTONIC is shared by all processes of a machine and never steps, so rows, tokens and system metrics
line up on it. A pair read back to back maps it to wall time for people and for other machines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from actscope.runtime.boot import boot_id


def monotonic_ns() -> int:
    """Nanoseconds of CLOCK_MONOTONIC: comparable between processes of one boot."""
    return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class ClockPair:
    """One instant on both clocks, and the boot that the monotonic one belongs to."""

    monotonic_ns: int
    wall_ns: int
    boot_id: str

    def wall_of(self, monotonic_ns: int) -> int:
        """Wall time (ns since the epoch) of a monotonic stamp of the same boot."""
        return self.wall_ns + (monotonic_ns - self.monotonic_ns)


def clock_pair() -> ClockPair:
    """Read both clocks; the wall stamp lies between two monotonic ones that are averaged."""
    before = time.monotonic_ns()
    wall = time.time_ns()
    after = time.monotonic_ns()
    return ClockPair((before + after) // 2, wall, boot_id())
