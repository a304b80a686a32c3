"""The history: the rows of recent steps, bounded by bytes and by time; the oldest go first."""

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

#: What a step and a leg cost beside rows and labels.
_STEP_BYTES, _LEG_BYTES = 640, 160
#: How many forgotten requests are still told apart from ones that never were.
_TOMBSTONES = 16_384


@dataclass(frozen=True, slots=True)
class FlightOptions:
    """How much stays in the flight recorder, and where."""

    bytes: int = 1 << 30
    """Bound of the rows and labels that are held; on disk, one file (a sixteenth, at most 64 MiB) more."""
    seconds: float = 0.0
    """Forget what is older; 0 sets no limit of time."""
    directory: str = ""
    """Hold the rows in files there, and only the labels in memory; empty holds all in memory."""
    queue_bytes: int = 256 << 20
    """Bound of what waits for the recorder's thread; more is dropped, and counted."""
    pending: int = 4096
    """How many marks may wait for requests that have not begun."""

    def __post_init__(self) -> None:
        if self.bytes < 1 << 20 or self.seconds < 0 or self.queue_bytes < 1 << 16 or self.pending < 0:
            raise SettingsError(
                "flight recorder: expected bytes >= 1 MiB, seconds >= 0, queue_bytes >= 64 KiB, pending >= 0; found "
                f"{self.bytes}, {self.seconds}, {self.queue_bytes}, {self.pending}"
            )

    def spool(self) -> Spool:
        if not self.directory:
            return MemorySpool()
        return DiskSpool(self.directory, min(64 << 20, max(1 << 16, self.bytes // 16)))


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is remembered of a request that has ended and of which nothing is held: rows given, and positions lost."""

    rows_given: int
    forgotten: tuple[Range, ...]
    dropped: tuple[Range, ...]


class History:
    """Steps in order, with the trail of each request that took part. One thread uses it.

    `leaving` is called with a step before its rows go.
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
        """Whether this span is the first that is seen of its request; an id may be used again after its end."""
        found = self.trails.get(span.request)
        return found is None or (found.end is not None and SpanFlag.FIRST in span.flags)

    def trail_of(self, span: Span) -> RequestRows:
        """The trail of a span's request, a new one where it begins."""
        if self.begins(span):
            self._begun += 1
            self.trails[span.request] = RequestRows(span.request, self._begun)
            self.gone.pop(span.request, None)
        return self.trails[span.request]

    def add(self, step: Step, frames: list[Frame]) -> KeptStep:
        """Hold a step's rows from now on.

        Raises OSError, and holds nothing, when the disk does not take them, RecordingError when they do not fit the step.
        """
        kept, arrays = KeptStep(step), []
        for frame in frames:
            array, dtype = as_numpy(frame.rows, frame.dtype)
            if len(array) != step.n_rows:
                raise RecordingError(f"{frame.site}: expected rows [{step.n_rows}, d], found {list(array.shape)}")
            kept.sites.append((frame.site, dtype))
            arrays.append(array)
        kept.size = step.meta.nbytes + sum(a.nbytes for a in arrays) + _STEP_BYTES + _LEG_BYTES * len(step.spans)
        while self._steps and self.bytes + kept.size > self._options.bytes:
            self._forget_oldest()
        kept.ticket = self.spool.put(arrays)
        self._steps.append(kept)
        self._count(kept, +1)
        for span in step.spans:
            if span.n_rows:
                self._add_leg(kept, span)
        return kept

    def _add_leg(self, kept: KeptStep, span: Span) -> None:
        trail = self.trail_of(span)
        trail.saw(span, kept.step.time_ns)
        leg = HeldSpan(trail, span, kept)
        trail.legs.append(leg)
        kept.legs.append(leg)

    def lose(self, step: Step) -> None:
        """This step's rows are not held: remember whose they were."""
        for span in step.spans:
            if span.n_rows:
                trail = self.trail_of(span)
                trail.saw(span, step.time_ns)
                trail.dropped.add(span.first_position, span.n_rows, step.time_ns)

    def end(self, step: Step, span: Span) -> RequestRows:
        """The span's request has ended. Its trail stays while its rows do."""
        trail = self.trail_of(span)
        place = Span(span.request, span.first_position + span.n_rows, 0, 0, span.flags & ~SpanFlag.FIRST, span.n_prompt)
        closing = Step(step.number, step.time_ns, (place,), np.empty(0, step.meta.dtype), step.generation)
        trail.end = HeldSpan(trail, place, KeptStep(closing))
        return trail

    def expire(self, now_ns: int) -> None:
        """Forget what is beyond the bounds."""
        limit = now_ns - int(self._options.seconds * 1e9)
        while self._steps and (
            self.bytes > self._options.bytes or (self._options.seconds and self._steps[0].step.time_ns < limit)
        ):
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        kept = self._steps.popleft()
        self._leaving(kept)
        for leg in kept.legs:
            leg.trail.forget(leg)
            self.bury_if_over(leg.trail)
        self._count(kept, -1)
        self.forgotten_rows += kept.step.n_rows
        self.spool.drop(kept.ticket)

    def bury_if_over(self, trail: RequestRows) -> None:
        """Of a request that has ended and of which nothing is held, only the id is remembered, for a while."""
        if trail.running or trail.legs or self.trails.get(trail.request) is not trail:
            return
        del self.trails[trail.request]
        lost = (tuple(rows.within(KeepWindow())) for rows in (trail.forgotten, trail.dropped))
        self.gone[trail.request] = Tombstone(trail.rows_given, *lost)
        while len(self.gone) > _TOMBSTONES:
            self.gone.popitem(last=False)

    def _count(self, kept: KeptStep, sign: int) -> None:
        self.bytes += sign * kept.size
        self.rows += sign * kept.step.n_rows
        self.bytes_max = max(self.bytes_max, self.bytes)
        self.oldest_ns = self._steps[0].step.time_ns if self._steps else None

    def close(self) -> None:
        self.spool.close()
