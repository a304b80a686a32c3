"""Flight recorder: a bounded buffer of recent rows. Marked rows are written back to the recording; the rest expires.

model thread: write ──▶ queue ──▶ one thread: history (bytes, seconds) ──▶ write-back ──▶ Recorder
                                  triggers and marks select requests ──▲
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TypeVar

from actscope.clock import monotonic_ns
from actscope.errors import RecordingError, RecordingPoisoned, SettingsError
from actscope.frames import SCORES, Frame, SinkStats, SpanFlag, Step
from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.marks import MarkRequest, MarkResult, MarkWatch, Outcomes
from actscope.recording.flight.retention import Retention
from actscope.recording.flight.state import RecordingFacts
from actscope.recording.flight.stats import FlightStats
from actscope.recording.flight.triggers import Rule
from actscope.recording.flight.windows import NEVER_ENDS, TokensOrTime
from actscope.recording.writing.recorder import Recorder

log = logging.getLogger("actscope.recording")

T = TypeVar("T")

#: Polling interval in seconds: while idle (to expire rows), and while rows wait for a full recorder.
_IDLE_S, _BUSY_S = 0.5, 0.005
#: When the queue is full, scores and labels may exceed it by 1/8 so that triggers keep working.
_SPARE = 8


class FlightRecorder:
    """`Sink` for servers: buffers recent rows in front of a `Recorder` and writes back the marked ones.

    Call `write` and `learn` on the model's thread; they only enqueue, without a copy. The flight recorder owns the rows from then
    on. Frames of sites that the recorder does not have are ignored. All other methods may be called from any thread.

    Args:
        recorder: Target of marked rows. Must have policy `drop` and no other user.
        options: Bounds of the buffer; None uses the defaults.
        rules: Triggers and samples that mark requests (see `triggers`).
        special_ids: Token ids at which no rule fires.
        clock: Returns nanoseconds on the clock of `Step.time_ns`.
        outcomes: Counts to go on from, those of a recorder whose place this one takes; None begins at 0.
        watch: Learns what becomes of marked requests, on the flight recorder's thread.

    Raises:
        SettingsError: The recorder's policy is not `drop`, or the directory in `options` is not usable.
    """

    def __init__(
        self,
        recorder: Recorder,
        options: FlightOptions | None = None,
        rules: Sequence[Rule] = (),
        *,
        special_ids: Collection[int] = (),
        clock: Callable[[], int] = monotonic_ns,
        outcomes: Outcomes | None = None,
        watch: MarkWatch | None = None,
    ) -> None:
        if recorder.options.policy != "drop":
            raise SettingsError(
                f"a flight recorder needs a recorder with policy 'drop', found {recorder.options.policy!r}"
            )
        self.recorder = recorder
        self.options = options or FlightOptions()
        self._sites = frozenset(recorder.spec.sites)
        self._clock = clock
        self._retention = Retention(recorder, self.options, rules, special_ids, clock, outcomes, watch)
        self._faults = 0
        self._bytes_in = self._bytes_out = 0  # of the queue; each counter has one writer
        self._stats = SinkStats()
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._open = self._running = True
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="actscope-flight", daemon=True)
        self._thread.start()

    # --- on the model's thread ------------------------------------------------------------------------------------------

    def write(self, step: Step, frames: list[Frame]) -> None:
        """Enqueue a step. Never blocks.

        When the queue is full the step's rows are dropped and counted. Its labels and scores are still enqueued, up to 1/8 above
        `queue_bytes`, so that triggers fire and marks can report the lost positions.

        Args:
            step: The step, with its labels.
            frames: Rows [step.n_rows, d] of each site, and optionally the probe scores. They must not be changed afterwards.
        """
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
        waiting, limit = self._bytes_in - self._bytes_out, self.options.queue_bytes
        fits = waiting + light + heavy <= limit or not waiting
        self._stats.steps += 1
        self._stats.rows += step.n_rows
        if not fits:
            self._stats.dropped_rows += step.n_rows
            if step.n_rows and waiting + light > limit + limit // _SPARE:
                self._write_ends(step)
                return
            frames, heavy = [frame for frame in frames if frame.site == SCORES], 0
        self._bytes_in += light + heavy
        self._queue.put(lambda: self._arrive(step, frames, fits, light + heavy))

    def _write_ends(self, step: Step) -> None:
        """Enqueue only the ends of a step for which there is no room. They are small, and without them no request would end."""
        ends = tuple(span for span in step.spans if span.flags & SpanFlag.END and not span.n_rows)
        if ends:
            bare = Step(step.number, step.time_ns, ends, step.meta[:0], step.generation)
            self._queue.put(lambda: self._arrive(bare, [], True, 0))

    def learn(self, table: bytes) -> None:
        """Enqueue a table of probes (`Bank.table`, JSON). It applies to the steps of its generation."""
        self._queue.put(lambda: self._retention.learn(table))

    def note(self, request: str, note: str) -> None:
        """Enqueue a note on a request, such as what computes it. If the request is kept, it is among the recording's marks."""
        self._queue.put(lambda: self._retention.note(request, note))

    # --- from any thread ------------------------------------------------------------------------------------------------

    def mark(
        self,
        request: str,
        why: str = "",
        *,
        before: TokensOrTime | None = None,
        after: TokensOrTime | None = None,
        wait_seconds: float = 0.0,
        runs: bool = False,
        earlier: bool = False,
    ) -> Future[MarkResult]:
        """Keep a request: its held rows and its future rows. Idempotent; a second mark can only widen what is kept.

        All steps written before this call are taken into account.

        Args:
            request: Request id.
            why: Reason that is written to the recording.
            before: Extent before the request's latest row; None keeps all held rows.
            after: Extent after the request's latest row; None keeps all rows until the request ends.
            wait_seconds: How long the mark waits for a request that is not known yet, in seconds.
            runs: The request runs already: the mark waits for its first row, and is counted as lost if it ends without one.
            earlier: An earlier writer has written rows of the request: without any of its rows now, it is incomplete, not lost.

        Returns:
            A future. Its result raises RecordingError when too many marks wait already, or when the flight recorder closes first.

        Raises:
            RecordingError: The flight recorder is closed.
        """
        until_ns = self._clock() + int(wait_seconds * 1e9) if wait_seconds > 0 else 0
        wanted = MarkRequest(why, before, after, NEVER_ENDS if runs else until_ns, runs, earlier)
        return self._call(lambda: self._retention.mark(request, wanted))

    def mark_running(
        self, why: str = "", *, before: TokensOrTime | None = None, after: TokensOrTime | None = None
    ) -> Future[list[MarkResult]]:
        """Mark all running requests. Arguments, result and errors are those of `mark`, with one result for each request."""
        return self._call(lambda: self._retention.mark_running(MarkRequest(why, before, after)))

    def mark_last(
        self, why: str = "", *, before: TokensOrTime | None = None, after: TokensOrTime | None = None
    ) -> Future[list[MarkResult]]:
        """Mark the request that began last. The result is empty when no request is known."""
        return self._call(lambda: self._retention.mark_last(MarkRequest(why, before, after)))

    def end_missed(self, requests: Sequence[str]) -> None:
        """End those of the requests that have not ended: the engine does not run them any more, and their ends never arrived."""
        if requests:
            self._queue.put(lambda: self._retention.end_missed(requests))

    def settle(self) -> FlightStats:
        """Wait until all steps written so far are processed and old rows are expired. Return the statistics.

        Raises:
            RecordingError: The flight recorder is closed.
        """
        return self._call(self._settled).result()

    def stats(self) -> FlightStats:
        """Return runtime statistics."""
        stats = self._retention.stats()
        stats.steps, stats.rows = self._stats.steps, self._stats.rows
        stats.dropped_rows += self._stats.dropped_rows
        stats.queued_bytes, stats.faults = self._bytes_in - self._bytes_out, self._faults
        return stats

    def describe(self) -> RecordingFacts:
        """Return settings, state and statistics as JSON values."""
        kept, flight, options = self.recorder.stats(), self.stats(), self.options
        failure = self.failure
        return {
            "recording": True,
            "path": str(self.recorder.path),
            "sites": list(self.recorder.spec.sites),
            "codec": self.recorder.spec.codec,
            "failure": None if failure is None else str(failure),
            "sample": self._retention.rate,
            "triggers": self._retention.triggers(),
            "marks": flight.marks,
            "marked_requests": flight.marked_requests,
            "pending_marks": flight.pending_marks,
            "flight": {
                "where": self._retention.where,
                "rows": flight.held_rows,
                "bytes": flight.held_bytes,
                "limit_bytes": options.bytes,
                "seconds": flight.seconds,
                "limit_seconds": options.seconds or None,
                "requests": flight.requests,
                "running": flight.running,
                "forgotten_rows": flight.forgotten_rows,
                "dropped_rows": flight.dropped_rows,
                "missed_ends": flight.missed_ends,
                "faults": flight.faults,
            },
            "kept": {
                "rows": kept.rows,
                "durable_rows": kept.durable_rows,
                "stored_bytes": kept.stored_bytes,
                "dropped_rows": sum(kept.dropped_by_site.values()),
                "lost_rows": flight.lost_rows,
                "whole_requests": flight.whole_requests,
                "incomplete_requests": flight.incomplete_requests,
                "lost_requests": flight.lost_requests,
            },
        }

    @property
    def failure(self) -> Exception | None:
        """Return the error that stopped the recording, or None. After an error, marks keep no further rows."""
        return self._retention.failure

    def close(self) -> None:
        """Write back the marked rows, discard the rest and close the recorder. Idempotent.

        Does not raise for a failed disk: that error was logged when it occurred, and is in `failure`.
        """
        if self._ended:
            return
        self._open, self._ended = False, True
        self._queue.put(self._finish)
        self._thread.join()
        while not self._queue.empty():  # calls made meanwhile raise "closed" in their futures
            self._queue.get()()
        try:
            self.recorder.close()
        except RecordingPoisoned:
            return  # already logged by the recorder
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
                if not self._running:
                    raise self._closed()
                future.set_result(function())
            except Exception as error:  # raised in the caller, by future.result()
                future.set_exception(error)

        self._queue.put(run)
        return future

    def _closed(self) -> RecordingError:
        return RecordingError(f"{self.recorder.path}: the flight recorder is closed")

    # --- on the flight recorder's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._running:
            try:
                self._next()
            except Exception as error:  # boundary: an error must end neither this thread nor the model's
                if not self._faults:
                    log.exception("the flight recorder failed at a step (further ones are only counted): %s", error)
                self._faults += 1

    def _next(self) -> None:
        try:
            self._queue.get(timeout=_BUSY_S if self._retention.writes_pending else _IDLE_S)()
        except queue.Empty:
            self._retention.tend()
        else:
            self._retention.write_back()

    def _arrive(self, step: Step, frames: list[Frame], complete: bool, size: int) -> None:
        try:
            if self._running:
                self._retention.take(step, frames, complete)
        finally:
            self._bytes_out += size

    def _settled(self) -> FlightStats:
        self._retention.tend()
        return self.stats()

    def _finish(self) -> None:
        self._running = False
        self._retention.close()
