"""The flight recorder: everything recent stays in it; what is marked moves to the recording, the rest is forgotten.

model's thread: write ──▶ queue ──▶ one thread: history (bytes, minutes) ──▶ outbox ──▶ Recorder
                                    rules and marks say which requests ──▲
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from actscope.clock import monotonic_ns
from actscope.errors import RecordingError, RecordingPoisoned, SettingsError
from actscope.frames import SCORES, Frame, SinkStats, Step
from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.marks import MarkRequest, MarkResult
from actscope.recording.flight.retention import Retention
from actscope.recording.flight.triggers import Rule
from actscope.recording.flight.windows import TokensOrTime
from actscope.recording.writing.recorder import Recorder

log = logging.getLogger("actscope.recording")

T = TypeVar("T")

#: How often time is looked at while nothing comes, and how often a full recorder is asked for room.
_IDLE_S, _BUSY_S = 0.5, 0.005
#: Scores and labels of steps whose rows found the queue full may take so much more of it.
_SPARE = 8


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
        self._sites = frozenset(recorder.spec.sites)
        self._clock = clock
        self._keeper = Retention(recorder, self.options, rules, special_ids, clock)
        self._faults = 0
        self._given = self._taken = 0  # bytes into the queue and out of it: each has one writer
        self._stats = SinkStats()
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
        self._queue.put(lambda: self._keeper.watcher.learn(table))

    # --- from any thread ------------------------------------------------------------------------------------------------

    def mark(
        self,
        request: str,
        why: str = "",
        *,
        before: TokensOrTime | None = None,
        after: TokensOrTime | None = None,
        wait_seconds: float = 0.0,
    ) -> Future[MarkResult]:
        """Keep a request: what is still held of it, and what comes until it ends.

        `before` and `after` count from its last row so far; None is everything. A request that is not known yet is waited
        for so long. Marking again changes nothing, or adds what was not wanted before. What was written before this call is
        found by it.
        """
        until_ns = self._clock() + int(wait_seconds * 1e9) if wait_seconds > 0 else 0
        return self._call(lambda: self._keeper.mark(request, MarkRequest(why, before, after, until_ns)))

    def mark_running(
        self, why: str = "", *, before: TokensOrTime | None = None, after: TokensOrTime | None = None
    ) -> Future[list[MarkResult]]:
        """Mark all requests that run now."""
        return self._call(lambda: self._keeper.mark_running(MarkRequest(why, before, after)))

    def mark_last(
        self, why: str = "", *, before: TokensOrTime | None = None, after: TokensOrTime | None = None
    ) -> Future[list[MarkResult]]:
        """Mark the request that has begun last; an empty list when there is none."""
        return self._call(lambda: self._keeper.mark_last(MarkRequest(why, before, after)))

    def settle(self) -> FlightStats:
        """Return when all that was written so far has been taken in, and what is too old is forgotten."""
        return self._call(self._settled).result()

    def stats(self) -> FlightStats:
        """Counts since the start, and what is held now."""
        keeper, history = self._keeper, self._keeper.history
        oldest = history.oldest_ns
        return FlightStats(
            self._stats.steps,
            self._stats.rows,
            self._stats.dropped_rows + keeper.missed_rows,
            held_rows=history.rows,
            held_steps=len(history),
            held_bytes=history.bytes,
            held_bytes_max=history.bytes_max,
            queued_bytes=self._given - self._taken,
            forgotten_rows=history.forgotten_rows,
            seconds=0.0 if oldest is None else max(0.0, (self._clock() - oldest) / 1e9),
            requests=len(history.trails),
            running=sum(trail.running for trail in list(history.trails.values())),
            marks=keeper.marks,
            marked_requests=keeper.marked_requests,
            pending_marks=keeper.pending_marks,
            given_rows=keeper.outbox.rows,
            lost_rows=keeper.outbox.lost_rows,
            faults=self._faults,
        )

    def describe(self) -> dict[str, Any]:
        """All of it as JSON, for people and programs that ask a server what it keeps."""
        kept, flight, options = self.recorder.stats(), self.stats(), self.options
        failure = self.failure
        return {
            "recording": True,
            "path": str(self.recorder.path),
            "sites": list(self.recorder.spec.sites),
            "codec": self.recorder.spec.codec,
            "failure": None if failure is None else str(failure),
            "sample": self._keeper.rate,
            "triggers": self._keeper.watcher.state(),
            "marks": flight.marks,
            "marked_requests": flight.marked_requests,
            "pending_marks": flight.pending_marks,
            "flight": {
                "where": self._keeper.history.spool.where,
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

    @property
    def failure(self) -> Exception | None:
        """What has stopped the recording, if anything did; marks then keep nothing."""
        return self._keeper.outbox.failure

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
        except RecordingPoisoned:
            return  # the recorder said so when it happened
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
                if not self._faults:
                    log.exception("the flight recorder failed at a step (further ones are only counted): %s", error)
                self._faults += 1

    def _next(self) -> None:
        try:
            self._queue.get(timeout=_BUSY_S if self._keeper.outbox else _IDLE_S)()
        except queue.Empty:
            self._keeper.tend()
        else:
            self._keeper.outbox.pump()

    def _arrive(self, step: Step, frames: list[Frame], complete: bool, size: int) -> None:
        try:
            if self._goes_on:
                self._keeper.take(step, [f for f in frames if f.site in self._sites or f.site == SCORES], complete)
        finally:
            self._taken += size

    def _settled(self) -> FlightStats:
        self._keeper.tend()
        return self.stats()

    def _finish(self) -> None:
        self._goes_on = False
        self._keeper.close()
