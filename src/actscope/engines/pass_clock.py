"""Stamps the borders that an engine crosses in each pass. Both engines use it, on the model's thread: it only reads the clock."""

from __future__ import annotations

from actscope.clock import monotonic_ns
from actscope.frames import PassTimes


class PassClock:
    """Times of the pass under way and of the sampling before it. Used by one thread.

        scheduled ──▶ begun ──▶ ended ──▶ sampling ──▶ sampled ──▶ scheduled …
                                  └─▶ `times` for the ring, before or after sampling

    Each method is called where the engine crosses the border; a border that it does not cross stays 0.
    """

    __slots__ = ("_before_sampled", "_before_sampling", "_begun", "_ended", "_sampled", "_sampling", "_scheduled")

    def __init__(self) -> None:
        self._scheduled = self._begun = self._ended = self._sampling = self._sampled = 0
        self._before_sampling = self._before_sampled = 0

    def scheduled(self) -> None:
        """Stamp the moment at which the requests of the next pass are known. What is known of the pass before is kept."""
        self._before_sampling, self._before_sampled = self._sampling, self._sampled
        self._sampling = self._sampled = self._begun = self._ended = 0
        self._scheduled = monotonic_ns()

    def begun(self) -> None:
        """Stamp the moment at which the model begins to compute."""
        self._begun = monotonic_ns()

    def ended(self) -> None:
        """Stamp the moment at which the model has computed (on a GPU: has been launched)."""
        self._ended = monotonic_ns()

    def sampling(self) -> None:
        """Stamp the beginning of the sampling of this pass."""
        self._sampling = monotonic_ns()

    def sampled(self) -> None:
        """Stamp the end of the sampling of this pass."""
        self._sampled = monotonic_ns()

    def times(self) -> PassTimes:
        """Return what is known of this pass, and when the tokens of the one before it were drawn."""
        return PassTimes(
            *(self._scheduled, self._begun, self._ended, self._sampling, self._sampled),
            *(self._before_sampling, self._before_sampled),
        )

    def sampling_only(self) -> PassTimes:
        """Return when the tokens of this pass were drawn: for a step of the same number without rows."""
        return PassTimes(sampling_ns=self._sampling, sampled_ns=self._sampled)
