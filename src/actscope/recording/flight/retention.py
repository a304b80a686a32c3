"""Retention: holds steps, evaluates triggers, applies marks and writes marked rows back, on one thread.

A row passes through one object at each stage of its life:

    arrive     `Retention.take`
    hold       `History.begin`, `History.add`       → `HeldStep`, `HeldSpan` and the `RequestRows` of its request
    evaluate   `TriggerEvaluator.evaluate`          → `Firing`
    mark       `RequestRows.mark`, `.keep`          → `Kept`: rows that count as given from then on
    write back `Writeback.keep`, `.add`, `.pump`    → `Recorder.write`
    expire     `History.expire`                     → `Writeback.hurry`, `RequestRows.evict`, `HeldStep.discard`
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import numpy as np

from actscope.errors import RecordingError
from actscope.frames import ROW_META, SCORES, Frame, Span, SpanFlag, Step
from actscope.recording.flight.history import FlightOptions, History
from actscope.recording.flight.marks import MarkRequest, MarkResult, MarkWatch, Outcomes, PendingMarks
from actscope.recording.flight.request_rows import RequestRows
from actscope.recording.flight.state import TriggerFacts
from actscope.recording.flight.stats import FlightStats
from actscope.recording.flight.trigger_evaluator import Firing, TriggerEvaluator
from actscope.recording.flight.triggers import ProbeRule, Rule, SampleRule
from actscope.recording.flight.writeback import Writeback
from actscope.recording.writing.recorder import Recorder
from actscope.sampling import keeps

log = logging.getLogger("actscope.recording")

_END = int(SpanFlag.END)


class Retention:
    """History, triggers, marks and write-back of one flight recorder. One thread uses it.

    `stats`, `failure`, `rate`, `where` and `triggers` may be called from any thread.

    Attributes:
        rate: Share of requests that are kept as a sample (0 to 1).
        where: Where rows are held: `memory` or the directory.
    """

    def __init__(
        self,
        recorder: Recorder,
        options: FlightOptions,
        rules: Sequence[Rule],
        special_ids: Collection[int],
        clock: Callable[[], int],
        outcomes: Outcomes | None = None,
        watch: MarkWatch | None = None,
    ) -> None:
        spool = options.spool()
        self.rate = max((rule.rate for rule in rules if isinstance(rule, SampleRule)), default=0.0)
        self.where = spool.where
        self._sites = frozenset(recorder.spec.sites) - {SCORES}
        self._evaluator = TriggerEvaluator([rule for rule in rules if isinstance(rule, ProbeRule)], special_ids)
        self._writeback = Writeback(recorder, spool, outcomes, watch)
        self._history = History(options, spool, self._writeback.hurry)
        self._pending = PendingMarks(options.pending)
        self._clock = clock
        self._missed_rows = 0  # the spool could not store them
        self._reported = self._missed_ends = False

    # --- steps ------------------------------------------------------------------------------------------------------------

    def take(self, step: Step, frames: Sequence[Frame], complete: bool) -> None:
        """Process a step: hold its rows, evaluate triggers, end requests, evict old steps.

        Args:
            step: The step.
            frames: Its rows at any sites, and optionally the probe scores. Sites that are not recorded are ignored.
            complete: False when the rows were dropped before they arrived.
        """
        if step.n_rows:
            for request_rows in self._history.begin(step):
                self._mark_new(request_rows, step.time_ns)
            self._hold(step, frames, complete)
        for frame in frames:
            if frame.site == SCORES:
                for firing in self._evaluator.evaluate(step, frame.rows):
                    self._fire(firing)
        self._end_requests(step)
        self._history.expire(self._clock())

    def learn(self, table: bytes) -> None:
        """Add a table of probes (`Bank.table`, JSON) for the steps of its generation."""
        self._evaluator.learn(table)

    def tend(self) -> None:
        """Expire old rows and flush pending writes (call when idle)."""
        self._history.expire(self._clock())
        self._writeback.pump()

    def write_back(self) -> None:
        """Write the pending rows for which the recorder has room."""
        self._writeback.pump()

    @property
    def writes_pending(self) -> bool:
        """Return whether rows wait for room in the recorder."""
        return bool(self._writeback)

    def close(self) -> None:
        """Write back all marked rows, then release the history."""
        try:
            running = [rows.request for rows in self._history.requests() if rows.running]
            self._end_all([*running, *self._pending.running()])
            self._writeback.drain()
        finally:
            self._history.close()

    def _mark_new(self, request_rows: RequestRows, time_ns: int) -> None:
        """Mark a request that begins, if a mark waits for it or it belongs to the sample."""
        pending = self._pending.take(request_rows.request, time_ns)
        if pending is not None:
            self._mark(request_rows, pending)
        if self.rate and keeps(request_rows.request, self.rate):
            self._mark(request_rows, MarkRequest(f"sample {self.rate:g}"))

    def _hold(self, step: Step, frames: Sequence[Frame], complete: bool) -> None:
        """Hold the rows of a step and write back those that earlier marks keep. Count rows that cannot be held."""
        if not complete:
            self._history.lose(step)
            return
        try:
            wanted = self._history.add(step, [frame for frame in frames if frame.site in self._sites])
        except OSError as error:
            self._missed_rows += step.n_rows
            self._history.lose(step)
            self._report(error)
            return
        self._writeback.add(wanted)

    def _fire(self, firing: Firing) -> None:
        request_rows = self._history.find(firing.request)
        if request_rows is not None:
            self._writeback.keep(request_rows.keep(firing.windows, firing.why if firing.begins else None))

    def _end_requests(self, step: Step) -> None:
        for span in step.spans:
            if int(span.flags) & _END:  # ints: this runs for every span of every step
                self._end(step, span)

    def _end(self, step: Step, span: Span) -> None:
        pending = self._pending.take(span.request, step.time_ns)
        if pending is not None:  # it ends, and no row of it has come
            self._history.lose_request(span.request)
            self._writeback.settle(MarkResult(span.request, "forgotten"), earlier=pending.earlier)
        self._writeback.add(self._history.end(step, span))
        self._evaluator.forget(span.request)

    def end_missed(self, requests: Sequence[str]) -> None:
        """See `FlightRecorder.end_missed`."""
        found = {request: self._history.find(request) for request in requests}
        begun = [request for request, rows in found.items() if rows is not None and rows.running]
        self._end_all([*begun, *(request for request in self._pending.running() if request in found)])
        self._writeback.outcomes.missed_ends += len(begun)
        if begun and not self._missed_ends:
            self._missed_ends = True
            log.warning(
                "the end of request %s did not arrive; it is over (further ones are only counted)", begun[0][:200]
            )

    def _end_all(self, requests: Sequence[str]) -> None:
        spans = tuple(Span(request, 0, 0, 0, SpanFlag.END) for request in dict.fromkeys(requests))
        if spans:
            self._end_requests(Step(0, self._clock(), spans, np.empty(0, ROW_META)))

    # --- marks ------------------------------------------------------------------------------------------------------------

    def mark(self, request: str, mark_request: MarkRequest) -> MarkResult:
        """See `FlightRecorder.mark`."""
        request_rows = self._history.find(request)
        if request_rows is not None:
            return self._mark(request_rows, mark_request)
        tombstone = self._history.tombstone(request)
        if tombstone is not None:
            if mark_request.runs and not tombstone.marked:  # it came when all was over
                self._history.lose_request(request)
                self._writeback.settle(tombstone.result(), earlier=mark_request.earlier)
            return tombstone.result()
        if not mark_request.until_ns:
            return MarkResult(request, "unknown")
        try:
            self._pending.wait(request, mark_request, self._clock())
        except RecordingError:
            if mark_request.runs:
                self._writeback.settle(MarkResult(request, "forgotten"), earlier=mark_request.earlier)
            raise
        return MarkResult(request, "pending")

    def note(self, request: str, note: str) -> None:
        """See `FlightRecorder.note`."""
        request_rows = self._history.find(request)
        self._writeback.note(request, note, is_marked=request_rows is not None and bool(request_rows.reasons))

    def mark_running(self, mark_request: MarkRequest) -> list[MarkResult]:
        """See `FlightRecorder.mark_running`."""
        return [self._mark(rows, mark_request) for rows in self._history.requests() if rows.running]

    def mark_last(self, mark_request: MarkRequest) -> list[MarkResult]:
        """See `FlightRecorder.mark_last`."""
        last = max(self._history.requests(), key=lambda rows: rows.number, default=None)
        return [] if last is None else [self._mark(last, mark_request)]

    def _mark(self, request_rows: RequestRows, mark_request: MarkRequest) -> MarkResult:
        kept, result = request_rows.mark(mark_request, self._clock())
        self._writeback.keep(kept)
        return result

    # --- state ------------------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> Exception | None:
        """Return the error that stopped the recording, or None."""
        return self._writeback.failure

    def triggers(self) -> list[TriggerFacts]:
        """Return for each rule its text, the number of firings that began, and whether its probe is loaded."""
        return self._evaluator.state()

    def stats(self) -> FlightStats:
        """Return the statistics of held, marked and written rows. `dropped_rows` counts those that the spool could not store."""
        history, requests = self._history, self._history.requests()
        oldest_ns, outcomes = history.oldest_ns, self._writeback.outcomes
        return FlightStats(
            dropped_rows=self._missed_rows,
            held_rows=history.rows,
            held_steps=len(history),
            held_bytes=history.bytes,
            held_bytes_max=history.bytes_max,
            forgotten_rows=history.forgotten_rows,
            seconds=0.0 if oldest_ns is None else max(0.0, (self._clock() - oldest_ns) / 1e9),
            requests=len(requests),
            running=sum(rows.running for rows in requests),
            marks=self._writeback.marks,
            marked_requests=self._writeback.marked_requests,
            pending_marks=len(self._pending),
            given_rows=self._writeback.rows,
            lost_rows=self._writeback.lost_rows,
            whole_requests=outcomes.whole,
            incomplete_requests=outcomes.incomplete,
            lost_requests=outcomes.lost,
            missed_ends=outcomes.missed_ends,
        )

    def _report(self, error: Exception) -> None:
        if not self._reported:
            self._reported = True
            log.error(
                "rows of a step could not be held (further ones are only counted): %s: %s", type(error).__name__, error
            )
