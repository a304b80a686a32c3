"""Settings of a replay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actscope.errors import SettingsError
from actscope.near_miss import hinted_class

if TYPE_CHECKING:
    from actscope.ring.layout import RingSpec


@hinted_class
@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Requests, pace and ring of a replay.

    Raises:
        SettingsError: A value is out of range.
    """

    requests: tuple[str, ...] = ()
    """Id of a request to play. Repeatable. By default all."""
    speed: float = 1.0
    """Pace: 1 is the recorded pace, 2 twice as fast, 0 as fast as possible."""
    loop: bool = False
    """Start again at the end, without limit. The requests of round n are named `<id>~n`."""
    any_model: bool = False
    """Accept probes that were made for another model or revision."""
    idle_seconds: float = 1.0
    """Maximum length of a pause in which no request was running. Longer pauses are shortened."""
    probe_width: int = 64
    """Maximum number of probes at a time."""
    ring_rows: int = 1 << 16
    """Capacity of the score ring, in rows, in steps and in spans."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed >= 0):
            raise SettingsError(f"speed {self.speed}: expected 0 (as fast as possible) or more; 1 is the recorded pace")
        if not (math.isfinite(self.idle_seconds) and self.idle_seconds >= 0):
            raise SettingsError(f"idle_seconds {self.idle_seconds}: expected 0 or more")

    def ring_spec(self, largest_step: int) -> RingSpec:
        """Return the layout of a ring in which the largest step takes at most half of the rows."""
        from actscope.ring.layout import RingSpec  # here: flags are made of this class, and help is light

        return RingSpec(max(self.ring_rows, 2 * largest_step), self.probe_width, self.ring_rows, self.ring_rows)
