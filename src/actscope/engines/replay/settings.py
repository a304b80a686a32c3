"""Settings of a replay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actscope.errors import SettingsError
from actscope.ring.layout import RingSpec


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Settings of a replay. Raises SettingsError for a negative or infinite `speed` or `idle_seconds`."""

    requests: tuple[str, ...] = ()
    """Ids of the requests to replay; empty for all."""
    speed: float = 1.0
    """Speed relative to the recorded pace; 0 is as fast as possible."""
    loop: bool = False
    """Restart at the end, forever; the requests of round n are named `<id>~n`."""
    any_model: bool = False
    """Accept probes that were made for another model or revision."""
    idle_seconds: float = 1.0
    """Maximum length, in seconds, of pauses without a running request."""
    probe_width: int = 64
    """Columns of the ring: the maximum number of probes."""
    ring_rows: int = 1 << 16
    """Capacity of the ring in rows, in steps and in spans."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed >= 0):
            raise SettingsError(f"speed {self.speed}: expected 0 (as fast as possible) or more; 1 is the recorded pace")
        if not (math.isfinite(self.idle_seconds) and self.idle_seconds >= 0):
            raise SettingsError(f"idle_seconds {self.idle_seconds}: expected 0 or more")

    def ring_spec(self, largest_step: int) -> RingSpec:
        """Return the sizes of a ring in which the largest step takes at most half of the rows."""
        return RingSpec(max(self.ring_rows, 2 * largest_step), self.probe_width, self.ring_rows, self.ring_rows)
