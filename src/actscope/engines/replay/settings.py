"""How a recording is to be replayed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actscope.errors import SettingsError
from actscope.ring.layout import RingSpec


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What of a recording is shown, how fast, and in how large a ring."""

    requests: tuple[str, ...] = ()
    """Only these requests; all of them if none is named."""
    speed: float = 1.0
    """1 is the pace at which it was recorded, 2 twice that; 0 is as fast as it goes."""
    loop: bool = False
    """Begin again at the end, for ever; the requests of round n are called `<id>~n`."""
    any_model: bool = False
    """Score with probes that say that they were made for another model or revision."""
    idle_seconds: float = 1.0
    """Pauses in which no request was under way are shortened to this."""
    probe_width: int = 64
    """Columns of the ring: the most probes at a time."""
    ring_rows: int = 1 << 16
    """Rows, steps and spans that the ring holds, each."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed >= 0):
            raise SettingsError(f"speed {self.speed}: expected 0 (as fast as it goes) or more; 1 is the recorded pace")
        if not (math.isfinite(self.idle_seconds) and self.idle_seconds >= 0):
            raise SettingsError(f"idle_seconds {self.idle_seconds}: expected 0 or more")

    def ring_spec(self, largest_step: int) -> RingSpec:
        """A ring in which the largest step takes no more than half of the rows."""
        return RingSpec(max(self.ring_rows, 2 * largest_step), self.probe_width, self.ring_rows, self.ring_rows)
