"""History of recent steps, bounded in bytes and in time. The oldest step is evicted first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actscope.errors import RecordingError, SettingsError
from actscope.frames import Frame, Span, SpanFlag, Step
from actscope.recording.flight.request_rows import HeldSpan, KeptStep, Range, RequestRows
from actscope.recording.flight.spool import DiskSpool, MemorySpool, Spool
from actscope.recording.flight.windows import KeepWindow
from actscope.recording.format.arrays import as_numpy

#: Bytes charged for each step and each span beside its rows and labels.
_STEP_BYTES, _SPAN_BYTES = 640, 160
#: Number of evicted requests that stay distinguishable from unknown ones.
_TOMBSTONES = 16_384


@dataclass(frozen=True, slots=True)
class FlightOptions:
    """Bounds and location of the flight recorder's buffer.

    Raises:
        SettingsError: A bound is out of range.
    """

    bytes: int = 1 << 30
    """Upper bound of held rows and labels, in bytes (at least 1 MiB). On disk, one more file of at most 64 MiB."""
    seconds: float = 0.0
    """Maximum age of a step, in seconds. 0 disables the limit."""
    directory: str = ""
    """Directory for the rows; labels stay in memory. Empty: rows stay in memory too."""
    queue_bytes: int = 256 << 20
    """Upper bound of the queue to the recorder's thread, in bytes (at least 64 KiB). Further rows are dropped and counted."""
    pending: int = 4096
    """Maximum number of marks for requests that have not begun."""

    def __post_init__(self) -> None:
        if self.bytes < 1 << 20 or self.seconds < 0 or self.queue_bytes < 1 << 16 or self.pending < 0:
            raise SettingsError(
                "flight recorder: expected bytes >= 1 MiB, seconds >= 0, queue_bytes >= 64 KiB, pending >= 0; found "
                f"{self.bytes}, {self.seconds}, {self.queue_bytes}, {self.pending}"
            )

    def spool(self) -> Spool:
        """Return a new spool: on disk if `directory` is set, else in memory."""
        if not self.directory:
            return MemorySpool()
        return DiskSpool(self.directory, min(64 << 20, max(1 << 16, self.bytes // 16)))


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Summary kept for a finished request after its rows were evicted: number of rows kept, and lost positions."""

    rows_given: int
    forgotten: tuple[Range, ...]
    dropped: tuple[Range, ...]


class History:
    """Recent steps in order, and the `RequestRows` of each request in them. Not thread-safe.

    `leaving` is called with each step before its rows are evicted.
    """

    def __init__(self, options: FlightOptions, leaving: Callable[[KeptStep], None]) -> None:
        self.spool = options.spool()
        self.trails: dict[str, RequestRows] = {}
        self.gone: OrderedDict[str, Tombstone] = OrderedDict()
        self.bytes = self.bytes_max = 0
        self.rows = self.forgotten_rows = 0
        self._options = options
        self._leaving = leaving
        self._steps: deque[KeptStep] = deque()
        self._begun = 0
        self.oldest_ns: int | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def begins(self, span: Span) -> bool:
        """Return whether this span begins a request. A request id may be reused after its END span."""
        found = self.trails.get(span.request)
        return found is None or (found.end is not None and SpanFlag.FIRST in span.flags)

    def trail_of(self, span: Span) -> RequestRows:
        """Return the rows of the span's request. Creates them if the span begins the request."""
        if self.begins(span):
            self._begun += 1
            self.trails[span.request] = RequestRows(span.request, self._begun)
            self.gone.pop(span.request, None)
        return self.trails[span.request]

    def add(self, step: Step, frames: list[Frame]) -> KeptStep:
        """Add a step and its rows. Evicts the oldest steps until it fits into the byte bound.

        Raises:
            OSError: The spool cannot store the rows. The step is not added.
            RecordingError: A frame's number of rows differs from the step's.
        """
        kept, arrays = KeptStep(step), []
        for frame in frames:
            array, dtype = as_numpy(frame.rows, frame.dtype)
            if len(array) != step.n_rows:
                raise RecordingError(f"{frame.site}: expected rows [{step.n_rows}, d], found {list(array.shape)}")
            kept.sites.append((frame.site, dtype))
            arrays.append(array)
        kept.size = step.meta.nbytes + sum(a.nbytes for a in arrays) + _STEP_BYTES + _SPAN_BYTES * len(step.spans)
        while self._steps and self.bytes + kept.size > self._options.bytes:
            self._forget_oldest()
        kept.ticket = self.spool.put(arrays)
        self._steps.append(kept)
        self._count(kept, +1)
        for span in step.spans:
            if span.n_rows:
                self._add_span(kept, span)
        return kept

    def _add_span(self, kept: KeptStep, span: Span) -> None:
        request_rows = self.trail_of(span)
        request_rows.saw(span, kept.step.time_ns)
        held = HeldSpan(request_rows, span, kept)
        request_rows.legs.append(held)
        kept.legs.append(held)

    def lose(self, step: Step) -> None:
        """Count the rows of a step that cannot be held as dropped, for each of its requests."""
        for span in step.spans:
            if span.n_rows:
                request_rows = self.trail_of(span)
                request_rows.saw(span, step.time_ns)
                request_rows.dropped.add(span.first_position, span.n_rows, step.time_ns)

    def end(self, step: Step, span: Span) -> RequestRows:
        """End the span's request and return its rows. They stay until the last one is evicted."""
        request_rows = self.trail_of(span)
        place = Span(span.request, span.first_position + span.n_rows, 0, 0, span.flags & ~SpanFlag.FIRST, span.n_prompt)
        closing = Step(step.number, step.time_ns, (place,), np.empty(0, step.meta.dtype), step.generation)
        request_rows.end = HeldSpan(request_rows, place, KeptStep(closing))
        return request_rows

    def expire(self, now_ns: int) -> None:
        """Evict the steps that exceed the byte bound or the age limit."""
        limit = now_ns - int(self._options.seconds * 1e9)
        while self._steps and (
            self.bytes > self._options.bytes or (self._options.seconds and self._steps[0].step.time_ns < limit)
        ):
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        kept = self._steps.popleft()
        self._leaving(kept)
        for held in kept.legs:
            held.trail.forget(held)
            self.bury_if_over(held.trail)
        self._count(kept, -1)
        self.forgotten_rows += kept.step.n_rows
        self.spool.drop(kept.ticket)

    def bury_if_over(self, request_rows: RequestRows) -> None:
        """Replace a finished request that has no held rows by a tombstone. Keeps the newest `_TOMBSTONES`."""
        if request_rows.running or request_rows.legs or self.trails.get(request_rows.request) is not request_rows:
            return
        del self.trails[request_rows.request]
        lost = (tuple(rows.within(KeepWindow())) for rows in (request_rows.forgotten, request_rows.dropped))
        self.gone[request_rows.request] = Tombstone(request_rows.rows_given, *lost)
        while len(self.gone) > _TOMBSTONES:
            self.gone.popitem(last=False)

    def _count(self, kept: KeptStep, sign: int) -> None:
        self.bytes += sign * kept.size
        self.rows += sign * kept.step.n_rows
        self.bytes_max = max(self.bytes_max, self.bytes)
        self.oldest_ns = self._steps[0].step.time_ns if self._steps else None

    def close(self) -> None:
        """Release the spool."""
        self.spool.close()
