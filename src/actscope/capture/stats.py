"""What a capture has seen, delivered and left out, exactly."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from typing import Any

from actscope.capture.labels.ambiguity import Ambiguity

log = logging.getLogger("actscope.capture")


@dataclass(slots=True)
class CaptureStats:
    """Counts since the capture began. A row is counted once for each site."""

    passes: int = 0
    """Forward passes seen."""
    incomplete_passes: int = 0
    """Passes that raised, or were found uncertain while they ran: nothing of them was delivered."""
    tokens: int = 0
    """Labelled positions of complete passes; each has a row at every site."""
    rows: int = 0
    """Rows handed to the recorder."""
    bytes: int = 0
    """Their size as the model computed them."""
    left_out_tokens: int = 0
    """Positions that the sample or the granularity left out."""
    after_end_tokens: int = 0
    """What batches computed for requests whose answer had ended, while others went on: no tokens of theirs, not delivered."""
    unowned_rows: int = 0
    """Rows that were computed and not delivered, because their labels were not certain; padding included."""
    reasons: dict[str, int] = field(default_factory=dict)
    """The same, by reason."""
    faults: int = 0
    """Errors of actscope's own; each switched off what it hit, and the model went on."""
    requests: int = 0
    """Requests begun."""
    recorder: Any = None
    """The recorder's own counts (`actscope.recording.writing.recorder.RecorderStats`), where there is one."""


class StatsCounter:
    """Keeps a CaptureStats, and says each kind of loss once in the log. Thread-safe."""

    def __init__(self) -> None:
        self._stats = CaptureStats()
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self._stats, name, getattr(self._stats, name) + count)

    def unowned(self, doubt: Ambiguity, rows: int, what: str = "") -> None:
        """Count rows that were not delivered; the first time for this reason, say so."""
        with self._lock:
            self._stats.unowned_rows += rows
            self._stats.reasons[doubt.name] = self._stats.reasons.get(doubt.name, 0) + rows
            first = doubt.name not in self._told
            self._told.add(doubt.name)
        if first:
            where = f" ({what})" if what else ""
            log.warning(
                "rows are not recorded, because %s%s; to have them: %s. They are counted in stats().unowned_rows",
                doubt.name, where, doubt.advice,
            )  # fmt: skip

    def fault(self, what: str) -> None:
        """Count a fault of our own, with its traceback in the log the first time."""
        with self._lock:
            self._stats.faults += 1
            first = what not in self._told
            self._told.add(what)
        if first:
            log.exception("%s failed; the model goes on", what)

    def read(self) -> CaptureStats:
        with self._lock:
            return replace(self._stats, reasons=dict(self._stats.reasons))
