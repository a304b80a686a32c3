"""Exact counts of what a capture observed, delivered and omitted."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace

from actscope.capture.labels.ambiguity import Ambiguity
from actscope.frames import SinkStats

log = logging.getLogger("actscope.capture")


@dataclass(slots=True)
class CaptureStats:
    """Counts since the capture began. A row is counted once per site.

    Returned by `Capture.stats`.
    """

    passes: int = 0
    """Observed forward passes."""
    incomplete_passes: int = 0
    """Passes that raised or whose labels were ambiguous. None of their rows was delivered."""
    tokens: int = 0
    """Labeled and kept positions of complete passes."""
    rows: int = 0
    """Rows handed to the recorder."""
    bytes: int = 0
    """Size of these rows in bytes, in the model's dtype."""
    left_out_tokens: int = 0
    """Positions omitted by the sample or the granularity."""
    after_end_tokens: int = 0
    """Positions that a batch computed for requests whose answer had already ended. Their rows are not delivered."""
    unowned_rows: int = 0
    """Rows that were computed but not delivered, mostly because their labels were ambiguous; includes padding."""
    reasons: dict[str, int] = field(default_factory=dict)
    """`unowned_rows` by reason."""
    faults: int = 0
    """Internal errors of actscope. The model continues after each."""
    requests: int = 0
    """Requests started."""
    recorder: SinkStats | None = None
    """Counts of the recorder (`actscope.recording.writing.recorder.RecorderStats`), or None if it has none."""


class StatsCounter:
    """Updates a CaptureStats and logs each kind of loss once. Thread-safe."""

    def __init__(self) -> None:
        self._stats = CaptureStats()
        self._logged: set[str] = set()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Add to the named counts."""
        with self._lock:
            for name, count in counts.items():
                setattr(self._stats, name, getattr(self._stats, name) + count)

    def unowned(self, reason: Ambiguity, rows: int, what: str = "") -> None:
        """Count rows that were not delivered. Log a warning the first time for each reason."""
        with self._lock:
            self._stats.unowned_rows += rows
            self._stats.reasons[reason.name] = self._stats.reasons.get(reason.name, 0) + rows
            first = reason.name not in self._logged
            self._logged.add(reason.name)
        if first:
            where = f" ({what})" if what else ""
            log.warning(
                "rows are not recorded, because %s%s; to have them: %s. They are counted in stats().unowned_rows",
                reason.name, where, reason.advice,
            )  # fmt: skip

    def fault(self, what: str) -> None:
        """Count an internal fault. Log its traceback the first time."""
        with self._lock:
            self._stats.faults += 1
            first = what not in self._logged
            self._logged.add(what)
        if first:
            log.exception("%s failed; the model goes on", what)

    def read(self) -> CaptureStats:
        """Return a copy of the counts."""
        with self._lock:
            return replace(self._stats, reasons=dict(self._stats.reasons))
