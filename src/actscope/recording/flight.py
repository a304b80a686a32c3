"""The flight recorder: everything recent stays in it; what is marked moves to the recording, the rest is forgotten.

model's thread: write ──▶ queue ──▶ one thread: history (bytes, minutes) ──▶ outbox ──▶ Recorder
                                    rules and marks say which requests ──▲
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from actscope.clock import monotonic_ns
from actscope.errors import ActscopeError, RecordingError, SettingsError
from actscope.frames import SCORES, Frame, SinkStats, Span, SpanFlag, Step
from actscope.recording.history import FlightOptions, History
from actscope.recording.outbox import Outbox, Piece
from actscope.recording.recorder import Recorder
from actscope.recording.rows import as_numpy
from actscope.recording.trail import KeptStep, Leg, Range, Trail
from actscope.recording.triggers import ProbeRule, Rule, SampleRule
from actscope.recording.watcher import Firing, Watcher
from actscope.recording.window import Extent, Window, Windows
from actscope.sampling import keeps

log = logging.getLogger("actscope.recording")

T = TypeVar("T")

#: How often time is looked at while nothing comes, and how often a full recorder is asked for room.
_IDLE_S, _BUSY_S = 0.5, 0.005
#: Scores and labels of steps whose rows found the queue full may take so much more of it.
_SPARE = 8
_END = int(SpanFlag.END)
#: How many reasons one request keeps; further marks for new ones only widen what is kept.
_MAX_REASONS = 64

MarkState = Literal["keeping", "kept", "pending", "forgotten", "unknown"]


@dataclass(frozen=True, slots=True)
class Marked:
    """What has become of a mark.

    `keeping`: the request runs, and its future rows will be kept too; `kept`: it had ended; `pending`: it is waited for;
    `forgotten`: it was known, and nothing of it is left; `unknown`: nothing is known of it. `rows`: positions of the
    request that the recording has or is about to get, by this mark and others. `forgotten` and `dropped`: ranges `(first,
    after)` of positions that this mark wants and that are gone: they had left the flight recorder, or never came into it.
    """

    request: str
    state: MarkState
    running: bool = False
    rows: int = 0
    forgotten: tuple[Range, ...] = ()
    dropped: tuple[Range, ...] = ()

    @property
    def missing(self) -> int:
        """How many positions are gone."""
        return sum(after - first for first, after in (*self.forgotten, *self.dropped))


@dataclass(slots=True)
class FlightStats(SinkStats):
    """`dropped_rows`: rows that did not come into the flight recorder, each counted once for all its sites.

    The rest is as of now: what is held, since when, and what has become of it.
    """

    held_rows: int = 0
    held_steps: int = 0
    held_bytes: int = 0
    held_bytes_max: int = 0
    queued_bytes: int = 0
    forgotten_rows: int = 0
    seconds: float = 0.0
    requests: int = 0
    running: int = 0
    marks: int = 0
    marked_requests: int = 0
    pending_marks: int = 0
    given_rows: int = 0
    lost_rows: int = 0
    faults: int = 0


@dataclass(frozen=True, slots=True)
class _Wish:
    """A mark for a request that has not begun."""

    why: str
    before: Extent | None
    after: Extent | None
    until_ns: int


class FlightRecorder:
    """A `Sink` for servers, in front of a recorder that must be its alone and have policy `drop`.

    `write` and `learn` are called on the model's thread and only hand over; rows are this recorder's from then on, and frames
    of sites that the recorder does not have are not held. Everything else may be called from any thread. `clock` gives
    nanoseconds on the clock of `Step.time_ns`. `special_ids` are tokens at which no rule fires.
    """

    def __init__(
        self,
        recorder: Recorder,
        options: FlightOptions | None = None,
        rules: Sequence[Rule] = (),
        *,
        special_ids: Collection[int] = (),
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        if recorder.options.policy != "drop":
            raise SettingsError(
                f"a flight recorder needs a recorder with policy 'drop', found {recorder.options.policy!r}"
            )
        self.recorder = recorder
        self.options = options or FlightOptions()
        self.rules = tuple(rules)
        self._sites = frozenset(recorder.spec.sites)
        self._clock = clock
        self._rate = max((rule.rate for rule in rules if isinstance(rule, SampleRule)), default=0.0)
        self._watcher = Watcher([rule for rule in rules if isinstance(rule, ProbeRule)], special_ids)
        self._history = History(self.options, self._leaving)
        self._outbox = Outbox(recorder, self._history.spool)
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        self._marks = self._marked = self._faults = 0
        self._given = self._taken = 0  # bytes into the queue and out of it: each has one writer
        self._stats = SinkStats()
        self._missed_rows = 0  # of the disk: counted on the other thread
        self._reported: set[str] = set()
        self._queue: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._open = self._goes_on = True
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="actscope-flight", daemon=True)
        self._thread.start()

    # --- on the model's thread ------------------------------------------------------------------------------------------

    def write(self, step: Step, frames: list[Frame]) -> None:
        """Hand over a step. Where the queue has no room for its rows they are dropped and counted; its labels and scores
        still go, so that rules fire and marks know what is missing."""
        if not self._open:
            self._stats.dropped_rows += step.n_rows
            return
        light = step.meta.nbytes + 256 * len(step.spans)
        heavy = 0
        for frame in frames:
            if frame.site in self._sites:
                heavy += frame.rows.nbytes
            elif frame.site == SCORES:
                light += frame.rows.nbytes
        waiting, limit = self._given - self._taken, self.options.queue_bytes
        fits = waiting + light + heavy <= limit or not waiting
        self._stats.steps += 1
        self._stats.rows += step.n_rows
        if not fits:
            self._stats.dropped_rows += step.n_rows
            if step.n_rows and waiting + light > limit + limit // _SPARE:
                return
            frames, heavy = [frame for frame in frames if frame.site == SCORES], 0
        self._given += light + heavy
        self._queue.put(lambda: self._arrive(step, frames, fits, light + heavy))

    def learn(self, table: bytes) -> None:
        """A table of probes (`Bank.table`) is in force from the next step on."""
        self._queue.put(lambda: self._watcher.learn(table))

    # --- from any thread ------------------------------------------------------------------------------------------------

    def mark(
        self,
        request: str,
        why: str = "",
        *,
        before: Extent | None = None,
        after: Extent | None = None,
        wait_seconds: float = 0.0,
    ) -> Future[Marked]:
        """Keep a request: what is still held of it, and what comes until it ends.

        `before` and `after` count from its last row so far; None is everything. A request that is not known yet is waited
        for so long. Marking again changes nothing, or adds what was not wanted before. What was written before this call is
        found by it.
        """
        wish = _Wish(why, before, after, self._clock() + int(wait_seconds * 1e9))
        return self._call(lambda: self._mark(request, wish, wait_seconds > 0))

    def mark_running(
        self, why: str = "", *, before: Extent | None = None, after: Extent | None = None
    ) -> Future[list[Marked]]:
        """Mark all requests that run now."""
        wish = _Wish(why, before, after, 0)
        return self._call(lambda: [self._keep(t, wish) for t in list(self._history.trails.values()) if t.running])

    def mark_last(
        self, why: str = "", *, before: Extent | None = None, after: Extent | None = None
    ) -> Future[list[Marked]]:
        """Mark the request that has begun last; an empty list when there is none."""
        wish = _Wish(why, before, after, 0)

        def last() -> list[Marked]:
            trails = self._history.trails.values()
            return [self._keep(max(trails, key=lambda t: t.number), wish)] if trails else []

        return self._call(last)

    def settle(self) -> FlightStats:
        """Return when all that was written so far has been taken in, and what is too old is forgotten."""
        return self._call(self._settled).result()

    def stats(self) -> FlightStats:
        """Counts since the start, and what is held now."""
        history, oldest = self._history, self._history.oldest_ns
        return FlightStats(
            self._stats.steps,
            self._stats.rows,
            self._stats.dropped_rows + self._missed_rows,
            held_rows=history.rows,
            held_steps=len(history),
            held_bytes=history.bytes,
            held_bytes_max=history.bytes_max,
            queued_bytes=self._given - self._taken,
            forgotten_rows=history.forgotten_rows,
            seconds=0.0 if oldest is None else max(0.0, (self._clock() - oldest) / 1e9),
            requests=len(history.trails),
            running=sum(trail.running for trail in list(history.trails.values())),
            marks=self._marks,
            marked_requests=self._marked,
            pending_marks=len(self._wishes),
            given_rows=self._outbox.rows,
            lost_rows=self._outbox.lost_rows,
            faults=self._faults,
        )

    def describe(self) -> dict[str, Any]:
        """All of it as JSON, for people and programs that ask a server what it keeps."""
        kept, flight, options = self.recorder.stats(), self.stats(), self.options
        failure = self.recorder.failure
        return {
            "recording": True,
            "path": str(self.recorder.path),
            "sites": list(self.recorder.spec.sites),
            "codec": self.recorder.spec.codec,
            "failure": None if failure is None else str(failure),
            "sample": self._rate,
            "triggers": self._watcher.state(),
            "marks": flight.marks,
            "marked_requests": flight.marked_requests,
            "pending_marks": flight.pending_marks,
            "flight": {
                "where": self._history.spool.where,
                "rows": flight.held_rows,
                "bytes": flight.held_bytes,
                "limit_bytes": options.bytes,
                "seconds": flight.seconds,
                "limit_seconds": options.seconds or None,
                "requests": flight.requests,
                "running": flight.running,
                "forgotten_rows": flight.forgotten_rows,
                "dropped_rows": flight.dropped_rows,
                "faults": flight.faults,
            },
            "kept": {
                "rows": kept.rows,
                "durable_rows": kept.durable_rows,
                "stored_bytes": kept.stored_bytes,
                "dropped_rows": sum(kept.dropped_by_site.values()),
                "lost_rows": flight.lost_rows,
            },
        }

    def close(self) -> None:
        """Hand over what is marked, forget the rest, and close the recorder. A second call does nothing.

        A disk that has failed has been reported when it did; it is not raised again.
        """
        if self._ended:
            return
        self._open, self._ended = False, True
        self._queue.put(self._finish)
        self._thread.join()
        while not self._queue.empty():  # whoever called meanwhile is told
            self._queue.get()()
        try:
            self.recorder.close()
        except RecordingError as error:
            log.error("%s", error)

    def _call(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        if self._ended:
            raise self._closed()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if not self._goes_on:
                    raise self._closed()
                future.set_result(function())
            except Exception as error:  # the caller's own, raised where it waits for the result
                future.set_exception(error)

        self._queue.put(run)
        return future

    def _closed(self) -> RecordingError:
        return RecordingError(f"{self.recorder.path}: the flight recorder is closed")

    # --- on the flight recorder's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._goes_on:
            try:
                self._next()
            except Exception as error:  # nothing that goes wrong here may end the recorder, or reach the model
                self._faults += 1
                self._report("the flight recorder failed at a step", error)

    def _next(self) -> None:
        try:
            self._queue.get(timeout=_BUSY_S if self._outbox else _IDLE_S)()
        except queue.Empty:
            self._history.expire(self._clock())
        self._outbox.pump()

    def _finish(self) -> None:
        self._goes_on = False
        try:
            self._outbox.drain()
        finally:
            self._history.close()

    def _settled(self) -> FlightStats:
        self._history.expire(self._clock())
        self._outbox.pump()
        return self.stats()

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._reported:
            self._reported.add(what)
            log.error("%s (further ones are only counted): %s: %s", what, type(error).__name__, error, exc_info=error)

    def _leaving(self, kept: KeptStep) -> None:
        self._outbox.hurry(kept)

    def _arrive(self, step: Step, frames: list[Frame], complete: bool, size: int) -> None:
        try:
            self._take_in(step, [frame for frame in frames if frame.site in self._sites], complete)
            for frame in frames:
                if frame.site == SCORES:
                    self._watch(step, frame)
            self._end_requests(step)
            self._history.expire(self._clock())
        finally:
            self._taken += size

    def _take_in(self, step: Step, frames: list[Frame], complete: bool) -> None:
        if not step.n_rows:
            return
        for span in step.spans:
            if span.n_rows and self._history.begins(span):
                self._begin(span, step.time_ns)
        if not complete:
            self._history.lose(step)
            return
        try:
            kept = self._history.add(step, frames)
        except OSError as error:
            self._missed_rows += step.n_rows
            self._history.lose(step)
            self._report("rows of a step could not be held", error)
            return
        self._keep_wanted(kept)

    def _begin(self, span: Span, time_ns: int) -> None:
        """A request is seen for the first time: it may have been waited for, or be in the sample."""
        wish = self._wishes.pop(span.request, None)
        if wish is not None and wish.until_ns >= time_ns:
            self._keep(self._history.trail_of(span), wish)
        if self._rate and keeps(span.request, self._rate):
            self._keep(self._history.trail_of(span), _Wish(f"sample {self._rate:g}", None, None, 0))

    def _keep_wanted(self, kept: KeptStep) -> None:
        """Of a step that has just come, the rows of requests that are kept."""
        pieces: list[Piece] = []
        for leg in kept.legs:
            windows = leg.trail.windows
            if windows is not None:
                windows.end_before(kept.step.time_ns)
                pieces += [(leg, run) for run in leg.choose(windows)]
        self._outbox.add(kept, pieces)

    def _watch(self, step: Step, frame: Frame) -> None:
        scores, _ = as_numpy(frame.rows)
        for firing in self._watcher.look(step, scores):
            self._fire(firing)

    def _fire(self, firing: Firing) -> None:
        trail = self._history.trails.get(firing.request)
        if trail is not None:
            for window in firing.windows:
                self._want(trail, window)
            if firing.begins:
                self._note(trail, firing.why)

    def _end_requests(self, step: Step) -> None:
        for span in step.spans:
            if not int(span.flags) & _END:  # ints: this runs for every span of every step
                continue
            trail = self._history.end(step, span)
            self._watcher.forget(span.request)
            if trail.windows is not None:
                self._keep_leg(trail, trail.end)
            self._history.bury_if_over(trail)

    # --- marks, on the same thread --------------------------------------------------------------------------------------

    def _mark(self, request: str, wish: _Wish, wait: bool) -> Marked:
        trail = self._history.trails.get(request)
        if trail is not None:
            return self._keep(trail, wish)
        if (grave := self._history.gone.get(request)) is not None:
            state: MarkState = "kept" if grave.rows_given else "forgotten"
            return Marked(request, state, False, grave.rows_given, grave.forgotten, grave.dropped)
        if not wait:
            return Marked(request, "unknown")
        now = self._clock()
        for name in [name for name, other in self._wishes.items() if other.until_ns < now]:
            del self._wishes[name]
        if len(self._wishes) >= self.options.pending and request not in self._wishes:
            raise RecordingError(
                f"{self.options.pending} marks wait for requests already; try again when some have begun"
            )
        self._wishes[request] = wish
        return Marked(request, "pending")

    def _keep(self, trail: Trail, wish: _Wish) -> Marked:
        window = Window.around(trail.position, trail.time_ns or self._clock(), wish.before, wish.after)
        self._want(trail, window)
        self._note(trail, wish.why)
        forgotten, dropped = tuple(trail.forgotten.within(window)), tuple(trail.dropped.within(window))
        state: MarkState = "keeping" if trail.running else "kept"
        if not trail.running and not trail.rows_given and (forgotten or dropped):
            state = "forgotten"
        return Marked(trail.request, state, trail.running, trail.rows_given, forgotten, dropped)

    def _want(self, trail: Trail, window: Window) -> None:
        """Keep a window of a request: what is held of it now, and what comes."""
        if trail.windows is None:
            trail.windows = Windows()
            self._marked += 1
        if trail.windows.add(window):
            for leg in trail.legs_within(window):
                self._keep_leg(trail, leg)
            self._keep_leg(trail, trail.end)

    def _keep_leg(self, trail: Trail, leg: Leg | None) -> None:
        if leg is not None and trail.windows is not None:
            self._outbox.add(leg.kept, [(leg, run) for run in leg.choose(trail.windows)])

    def _note(self, trail: Trail, why: str) -> None:
        """Write the mark into the recording, once for each reason."""
        if why in trail.reasons or len(trail.reasons) >= _MAX_REASONS:
            return
        trail.reasons.append(why)
        self._marks += 1
        if self.recorder.failure is not None:
            return
        try:
            self.recorder.mark(trail.request, why)
        except (ActscopeError, OSError) as error:
            self._report("a mark could not be written", error)
