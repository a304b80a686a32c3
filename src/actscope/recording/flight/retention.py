"""The keeper: takes steps into the history, and says which requests of it go to the recording."""

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
#: How many reasons one request keeps; further marks for new ones only widen what is kept.
_MAX_REASONS = 64


class Retention:
    """History, rules, marks and outbox of one flight recorder. One thread uses it; counts may be read from others."""

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
        self.missed_rows = 0  # that neither memory nor disk took
        self._pending = options.pending
        self._wishes: OrderedDict[str, MarkRequest] = OrderedDict()
        self._clock = clock
        self._reported: set[str] = set()

    @property
    def pending_marks(self) -> int:
        return len(self._wishes)

    # --- steps ------------------------------------------------------------------------------------------------------------

    def take(self, step: Step, frames: list[Frame], complete: bool) -> None:
        """A step has come; `complete` is false when its rows were dropped on the way."""
        self._take_rows(step, [frame for frame in frames if frame.site != SCORES], complete)
        for frame in frames:
            if frame.site == SCORES:
                self._watch(step, frame)
        self._end_requests(step)
        self.history.expire(self._clock())

    def tend(self) -> None:
        """Forget what is too old, and hand over what the recorder has room for."""
        self.history.expire(self._clock())
        self.outbox.pump()

    def close(self) -> None:
        """Hand over all that is wanted; the rest is gone."""
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
        """A request is seen for the first time: it may have been waited for, or be in the sample."""
        wish = self._wishes.pop(span.request, None)
        if wish is not None and wish.until_ns >= time_ns:
            self._keep(self.history.trail_of(span), wish)
        if self.rate and keeps(span.request, self.rate):
            self._keep(self.history.trail_of(span), MarkRequest(f"sample {self.rate:g}", None, None, 0))

    def _keep_wanted(self, kept: KeptStep) -> None:
        """Of a step that has just come, the rows of requests that are kept."""
        pieces: list[Piece] = []
        for leg in kept.legs:
            windows = leg.trail.windows
            if windows is not None:
                windows.end_before(kept.step.time_ns)
                pieces += [(leg, run) for run in leg.choose(windows)]
        self.outbox.add(kept, pieces)

    def _watch(self, step: Step, frame: Frame) -> None:
        scores, _ = as_numpy(frame.rows)
        for firing in self.watcher.look(step, scores):
            self._fire(firing)

    def _fire(self, firing: Firing) -> None:
        trail = self.history.trails.get(firing.request)
        if trail is not None:
            for window in firing.windows:
                self._want(trail, window)
            if firing.begins:
                self._note(trail, firing.why)

    def _end_requests(self, step: Step) -> None:
        for span in step.spans:
            if not int(span.flags) & _END:  # ints: this runs for every span of every step
                continue
            trail = self.history.end(step, span)
            self.watcher.forget(span.request)
            if trail.windows is not None:
                self._keep_leg(trail, trail.end)
            self.history.bury_if_over(trail)

    # --- marks ------------------------------------------------------------------------------------------------------------

    def mark(self, request: str, wish: MarkRequest) -> MarkResult:
        """See `FlightRecorder.mark`."""
        trail = self.history.trails.get(request)
        if trail is not None:
            return self._keep(trail, wish)
        if (grave := self.history.gone.get(request)) is not None:
            state: MarkState = "kept" if grave.rows_given else "forgotten"
            return MarkResult(request, state, False, grave.rows_given, grave.forgotten, grave.dropped)
        if not wish.until_ns:
            return MarkResult(request, "unknown")
        self._wait_for(request, wish)
        return MarkResult(request, "pending")

    def mark_running(self, wish: MarkRequest) -> list[MarkResult]:
        return [self._keep(trail, wish) for trail in list(self.history.trails.values()) if trail.running]

    def mark_last(self, wish: MarkRequest) -> list[MarkResult]:
        trails = self.history.trails.values()
        return [self._keep(max(trails, key=lambda trail: trail.number), wish)] if trails else []

    def _wait_for(self, request: str, wish: MarkRequest) -> None:
        now = self._clock()
        for name in [name for name, other in self._wishes.items() if other.until_ns < now]:
            del self._wishes[name]
        if len(self._wishes) >= self._pending and request not in self._wishes:
            raise RecordingError(f"{self._pending} marks wait for requests already; try again when some have begun")
        self._wishes[request] = wish

    def _keep(self, trail: RequestRows, wish: MarkRequest) -> MarkResult:
        window = KeepWindow.around(trail.position, trail.time_ns or self._clock(), wish.before, wish.after)
        self._want(trail, window)
        self._note(trail, wish.why)
        forgotten, dropped = tuple(trail.forgotten.within(window)), tuple(trail.dropped.within(window))
        state: MarkState = "keeping" if trail.running else "kept"
        if not trail.running and not trail.rows_given and (forgotten or dropped):
            state = "forgotten"
        return MarkResult(trail.request, state, trail.running, trail.rows_given, forgotten, dropped)

    def _want(self, trail: RequestRows, window: KeepWindow) -> None:
        """Keep a window of a request: what is held of it now, and what comes."""
        if trail.windows is None:
            trail.windows = Windows()
            self.marked_requests += 1
        if trail.windows.add(window):
            for leg in trail.legs_within(window):
                self._keep_leg(trail, leg)
            self._keep_leg(trail, trail.end)

    def _keep_leg(self, trail: RequestRows, leg: HeldSpan | None) -> None:
        if leg is not None and trail.windows is not None:
            self.outbox.add(leg.kept, [(leg, run) for run in leg.choose(trail.windows)])

    def _note(self, trail: RequestRows, why: str) -> None:
        """Write the mark into the recording, once for each reason."""
        if why in trail.reasons or len(trail.reasons) >= _MAX_REASONS:
            return
        trail.reasons.append(why)
        self.marks += 1
        self.outbox.mark(trail.request, why)

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._reported:
            self._reported.add(what)
            log.error("%s (further ones are only counted): %s: %s", what, type(error).__name__, error)
