"""Retention: adds steps to the history and selects the rows that are written back to the recording."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from actscope.errors import RecordingError
from actscope.frames import SCORES, Frame, Span, SpanFlag, Step
from actscope.recording.flight.history import FlightOptions, History
from actscope.recording.flight.marks import MarkRequest, MarkResult, MarkState
from actscope.recording.flight.request_rows import HeldSpan, KeptStep, RequestRows
from actscope.recording.flight.trigger_evaluator import Firing, TriggerEvaluator
from actscope.recording.flight.triggers import ProbeRule, Rule, SampleRule
from actscope.recording.flight.windows import KeepWindow, Windows
from actscope.recording.flight.writeback import Piece, Writeback
from actscope.recording.format.arrays import as_numpy
from actscope.recording.writing.recorder import Recorder
from actscope.sampling import keeps

log = logging.getLogger("actscope.recording")

_END = int(SpanFlag.END)
#: Maximum number of reasons recorded for a request. Further marks only widen what is kept.
_MAX_REASONS = 64


class Retention:
    """History, triggers, marks and write-back of one flight recorder. One thread uses it; any thread may read the counts."""

    def __init__(
        self,
        recorder: Recorder,
        options: FlightOptions,
        rules: Sequence[Rule],
        special_ids: Collection[int],
        clock: Callable[[], int],
    ) -> None:
        self.rate = max((rule.rate for rule in rules if isinstance(rule, SampleRule)), default=0.0)
        self.watcher = TriggerEvaluator([rule for rule in rules if isinstance(rule, ProbeRule)], special_ids)
        self.history = History(options, lambda kept: self.outbox.hurry(kept))
        self.outbox = Writeback(recorder, self.history.spool)
        self.marks = self.marked_requests = 0
        self.missed_rows = 0  # the spool could not store them
        self._pending = options.pending
        self._mark_requests: OrderedDict[str, MarkRequest] = OrderedDict()
        self._clock = clock
        self._reported: set[str] = set()

    @property
    def pending_marks(self) -> int:
        """Return the number of marks that wait for their request to begin."""
        return len(self._mark_requests)

    # --- steps ------------------------------------------------------------------------------------------------------------

    def take(self, step: Step, frames: list[Frame], complete: bool) -> None:
        """Process a step: hold its rows, evaluate triggers, end requests. `complete` is False when its rows were dropped."""
        self._take_rows(step, [frame for frame in frames if frame.site != SCORES], complete)
        for frame in frames:
            if frame.site == SCORES:
                self._watch(step, frame)
        self._end_requests(step)
        self.history.expire(self._clock())

    def tend(self) -> None:
        """Expire old rows and flush pending writes (call when idle)."""
        self.history.expire(self._clock())
        self.outbox.pump()

    def close(self) -> None:
        """Write back all marked rows, then release the history."""
        try:
            self.outbox.drain()
        finally:
            self.history.close()

    def _take_rows(self, step: Step, frames: list[Frame], complete: bool) -> None:
        if not step.n_rows:
            return
        for span in step.spans:
            if span.n_rows and self.history.begins(span):
                self._begin(span, step.time_ns)
        if not complete:
            self.history.lose(step)
            return
        try:
            kept = self.history.add(step, frames)
        except OSError as error:
            self.missed_rows += step.n_rows
            self.history.lose(step)
            self._report("rows of a step could not be held", error)
            return
        self._keep_wanted(kept)

    def _begin(self, span: Span, time_ns: int) -> None:
        """Begin a request: apply a pending mark for it, and the sample."""
        mark_request = self._mark_requests.pop(span.request, None)
        if mark_request is not None and mark_request.until_ns >= time_ns:
            self._keep(self.history.trail_of(span), mark_request)
        if self.rate and keeps(span.request, self.rate):
            self._keep(self.history.trail_of(span), MarkRequest(f"sample {self.rate:g}", None, None, 0))

    def _keep_wanted(self, kept: KeptStep) -> None:
        """Write back the rows of a new step that lie inside the windows of marked requests."""
        pieces: list[Piece] = []
        for held in kept.legs:
            windows = held.trail.windows
            if windows is not None:
                windows.end_before(kept.step.time_ns)
                pieces += [(held, run) for run in held.choose(windows)]
        self.outbox.add(kept, pieces)

    def _watch(self, step: Step, frame: Frame) -> None:
        scores, _ = as_numpy(frame.rows)
        for firing in self.watcher.look(step, scores):
            self._fire(firing)

    def _fire(self, firing: Firing) -> None:
        rows = self.history.trails.get(firing.request)
        if rows is not None:
            for window in firing.windows:
                self._want(rows, window)
            if firing.begins:
                self._note(rows, firing.why)

    def _end_requests(self, step: Step) -> None:
        for span in step.spans:
            if not int(span.flags) & _END:  # ints: this runs for every span of every step
                continue
            rows = self.history.end(step, span)
            self.watcher.forget(span.request)
            if rows.windows is not None:
                self._keep_span(rows, rows.end)
            self.history.bury_if_over(rows)

    # --- marks ------------------------------------------------------------------------------------------------------------

    def mark(self, request: str, mark_request: MarkRequest) -> MarkResult:
        """See `FlightRecorder.mark`."""
        rows = self.history.trails.get(request)
        if rows is not None:
            return self._keep(rows, mark_request)
        if (tombstone := self.history.gone.get(request)) is not None:
            state: MarkState = "kept" if tombstone.rows_given else "forgotten"
            return MarkResult(request, state, False, tombstone.rows_given, tombstone.forgotten, tombstone.dropped)
        if not mark_request.until_ns:
            return MarkResult(request, "unknown")
        self._wait_for(request, mark_request)
        return MarkResult(request, "pending")

    def mark_running(self, mark_request: MarkRequest) -> list[MarkResult]:
        """See `FlightRecorder.mark_running`."""
        return [self._keep(rows, mark_request) for rows in list(self.history.trails.values()) if rows.running]

    def mark_last(self, mark_request: MarkRequest) -> list[MarkResult]:
        """See `FlightRecorder.mark_last`."""
        trails = self.history.trails.values()
        return [self._keep(max(trails, key=lambda rows: rows.number), mark_request)] if trails else []

    def _wait_for(self, request: str, mark_request: MarkRequest) -> None:
        now = self._clock()
        for name in [name for name, other in self._mark_requests.items() if other.until_ns < now]:
            del self._mark_requests[name]
        if len(self._mark_requests) >= self._pending and request not in self._mark_requests:
            raise RecordingError(f"{self._pending} marks wait for requests already; try again when some have begun")
        self._mark_requests[request] = mark_request

    def _keep(self, rows: RequestRows, mark_request: MarkRequest) -> MarkResult:
        window = KeepWindow.around(
            rows.position, rows.time_ns or self._clock(), mark_request.before, mark_request.after
        )
        self._want(rows, window)
        self._note(rows, mark_request.why)
        forgotten, dropped = tuple(rows.forgotten.within(window)), tuple(rows.dropped.within(window))
        state: MarkState = "keeping" if rows.running else "kept"
        if not rows.running and not rows.rows_given and (forgotten or dropped):
            state = "forgotten"
        return MarkResult(rows.request, state, rows.running, rows.rows_given, forgotten, dropped)

    def _want(self, rows: RequestRows, window: KeepWindow) -> None:
        """Keep a window of a request: write back its held rows now, and future rows as they arrive."""
        if rows.windows is None:
            rows.windows = Windows()
            self.marked_requests += 1
        if rows.windows.add(window):
            for held in rows.legs_within(window):
                self._keep_span(rows, held)
            self._keep_span(rows, rows.end)

    def _keep_span(self, rows: RequestRows, held: HeldSpan | None) -> None:
        if held is not None and rows.windows is not None:
            self.outbox.add(held.kept, [(held, run) for run in held.choose(rows.windows)])

    def _note(self, rows: RequestRows, why: str) -> None:
        """Record the mark, once for each reason."""
        if why in rows.reasons or len(rows.reasons) >= _MAX_REASONS:
            return
        rows.reasons.append(why)
        self.marks += 1
        self.outbox.mark(rows.request, why)

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._reported:
            self._reported.add(what)
            log.error("%s (further ones are only counted): %s: %s", what, type(error).__name__, error)
