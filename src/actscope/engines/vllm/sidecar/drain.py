"""RowDrain: moves raw rows from shared memory into the flight recorder."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from actscope.counters import counted, counting
from actscope.engines.vllm.sidecar.names import Names
from actscope.engines.vllm.sidecar_protocol import (
    MAX_OPTION_CHARS,
    Marked,
    RequestOptions,
    RunningRequests,
    Settled,
    SidecarCounts,
    SidecarStart,
    Taken,
    ids_are_plain,
    row_layout,
)
from actscope.errors import ActscopeError, RingError
from actscope.frames import SCORES, Frame, Span, SpanFlag, Step
from actscope.recording.flight.marks import MarkResult, Outcomes
from actscope.recording.flight.recorder import FlightRecorder
from actscope.ring.discovery import read_table
from actscope.ring.host import RingReader, StepRecord
from actscope.sites import select

log = logging.getLogger("actscope.vllm")

#: Most running requests whose options are kept. Those of requests that have ended are removed.
_REMEMBERED = 1 << 16
#: How long to wait for a request's options after its first row.
_OPTIONS_S = 1.0
#: How often `Taken` is sent. Steps read after the last one are read again if the sidecar dies.
_TELL_EVERY_S = 0.02


@counting("drain")
@dataclass(slots=True)
class DrainStats:
    """Exact counts. The last three are those of all sidecars of the engine (see `SidecarCounts`)."""

    steps: int = counted(
        "work", "Passes of raw rows that the sidecar read; a new one reads those in shared memory again."
    )
    rows: int = counted("work", "Raw rows that the sidecar read; a new one reads those in shared memory again.")
    missed_rows: int = counted(
        "loss",
        "Raw rows that were overwritten in shared memory before the sidecar had read them; they are not recorded.",
        "Record fewer sites or requests (ACTSCOPE_ROW_SITES, ACTSCOPE_ROWS=asked), or raise ACTSCOPE_BUFFER_GB.",
    )
    dropped_rows: int = counted(
        "loss",
        "Raw rows that were not put into shared memory, because their pass was larger than the ring or malformed.",
        "Raise ACTSCOPE_BUFFER_GB or the size of /dev/shm, or lower --max-num-batched-tokens.",
    )
    late_options: int = counted(
        "doubt",
        "Requests whose recording options did not arrive in time, so that rows of all sites were recorded.",
        "Give the engine's machine more cores; see sidecar_untold.",
    )


class RowDrain:
    """One thread that copies rows from the ring of wide rows to a flight recorder.

    A request with a selection of sites gets only those. As the recorder's `MarkWatch` it tells the model's process which requests
    are marked and what became of them, so that the next sidecar knows if this one dies.
    """

    def __init__(self, start: SidecarStart, tell: Callable[[Marked | Settled | Taken], None]) -> None:
        """Attach to the ring. Call `begin` with the recorder before anything else."""
        self._start, self._tell = start, tell
        self._taken, self._told_at = start.taken, 0.0
        self._reader = RingReader.attach(start.rows_ring, from_oldest=True)
        self._overwritten = max(0, self._reader.next_row - start.taken_row)  # before this sidecar came
        self._heads = row_layout(start.columns, self._reader.spec.dtype)
        self._options: OrderedDict[str, tuple[int, ...] | None] = OrderedDict()
        self._computing: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._heard = threading.Condition()
        self._telling = threading.Lock()  # counts must not overtake each other on their way
        self._late = start.counts.late_options
        self._outcomes = start.counts
        self._ran = frozenset(start.running)  # the last list of running requests, and those known here when it came
        self._seen: list[str] = []
        self._due: list[str] | None = None  # a newer list, and the step before which all must be read first
        self._due_at: int | None = None
        self._untabled: set[int] = set()
        self._generation = -1
        self._missed = 0
        self._taken_before = 0  # all steps before it are with the flight recorder
        self._awaited: list[tuple[int, Future[None]]] = []  # by the step before which all must be taken
        self._awaiting = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actscope-drain", daemon=True)

    def begin(self, flight: FlightRecorder) -> None:
        """Take up what the last sidecar knew, then start the thread."""
        self._flight = flight
        self._known = flight.recorder.known_requests
        self._names = Names(self._known)
        if self._overwritten and self._start.restarts:
            log.warning("%d raw rows were overwritten while there was no sidecar to record them", self._overwritten)
        for options in self._start.wishes:
            if options.name:
                self._names.resume(options.request, options.name)
            self.hear(options)
        self._seen = self._names.running()
        self._thread.start()

    def close(self) -> None:
        """Record what is still in the ring, then end the thread. Waits at most 20 seconds."""
        self._stop.set()
        self._thread.join(timeout=20)

    def name(self, request: str) -> str:
        """Return the name of a request in the recording. Thread-safe; repeated calls return the same name."""
        return self._names.name(request)

    def recorded_name(self, request: str) -> str:
        """Return the name in the recording of a request that the engine knows by this id; else the id. Thread-safe."""
        return self._names.recorded(request)

    def read_up(self) -> Future[None]:
        """Return a future that is done when all rows published before this call are with the flight recorder. Thread-safe."""
        future: Future[None] = Future()
        with self._awaiting:
            try:
                before = self._reader.published
            except RingError:  # nothing more can be read
                before = 0
            if self._taken_before >= before or not self._thread.is_alive():
                future.set_result(None)
            else:
                self._awaited = [one for one in self._awaited if not one[1].cancelled()] + [(before, future)]
        return future

    def _reach(self, step: int | None) -> None:
        """Note that all steps before this one are with the flight recorder; None: no more will be."""
        with self._awaiting:
            self._taken_before = self._taken_before if step is None else step
            reached = [one for one in self._awaited if step is None or one[0] <= step]
            self._awaited = [one for one in self._awaited if one not in reached]
        for _, future in reached:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def counts(self) -> SidecarCounts:
        """Return exact counts, those of earlier sidecars of this engine included."""
        known, before = self._reader.stats(), self._start.counts
        return msgspec.structs.replace(
            self._outcomes,
            missed_rows=before.missed_rows + self._overwritten + known.missed_rows,
            dropped_rows=before.dropped_rows + known.dropped_rows,
            late_options=self._late,
        )

    def stats(self) -> DrainStats:
        """Return what was read, and the exact counts of all sidecars of this engine."""
        known, counts = self._reader.stats(), self.counts()
        return DrainStats(known.steps, known.rows, counts.missed_rows, counts.dropped_rows, counts.late_options)

    # --- MarkWatch, on the flight recorder's thread ---

    def marked(self, request: str, why: str) -> None:
        """Tell the model's process that a request is marked."""
        engine_id = self._names.engine_id(request)
        if engine_id is not None:
            self._tell(Marked(engine_id, why[:MAX_OPTION_CHARS], request))

    def settled(self, result: MarkResult, outcomes: Outcomes) -> None:
        """Tell the model's process what became of a marked request. Before this it counts nowhere."""
        engine_id = self._names.engine_id(result.request)
        with self._telling:
            self._outcomes = SidecarCounts(
                whole=outcomes.whole,
                incomplete=outcomes.incomplete,
                lost=outcomes.lost,
                missed_ends=outcomes.missed_ends,
            )
            self._tell(Settled([] if engine_id is None else [engine_id], self.counts()))

    # --- messages of the model's process ---

    def hear(self, options: RequestOptions) -> None:
        """Store a request's options, note what computes it, and mark the request if it is to be kept."""
        name = self._names.name(options.request, begins=ids_are_plain())
        for note in self._new_notes(options):
            self._flight.note(name, note)
        with self._heard:
            self._options[options.request] = self._chosen(name, options.rows) if options.rows else None
            if len(self._options) > _REMEMBERED:
                self._options.popitem(last=False)
            self._heard.notify_all()
        if options.keep:
            earlier = bool(options.name) and options.name in self._known
            marking = self._flight.mark(name, options.keep, runs=True, earlier=earlier)
            marking.add_done_callback(self._check_mark)

    def _check_mark(self, marking: Future[MarkResult]) -> None:
        """Log a mark that was refused; the flight recorder has counted the request as lost."""
        error = marking.exception()
        if error is not None and not self._stop.is_set():
            log.error("a request is not kept: %s", error)

    def hear_running(self, message: RunningRequests) -> None:
        """Take the list of running requests. The drain's thread compares it once it has read all that was published before."""
        self._due = message.requests

    def _reconcile(self) -> None:
        """End the requests that the model's process does not run any more, if their ends should have arrived.

        Their last rows may still be on their way from the device when it has forgotten them, and a new request may be seen here
        before it is in the list. So a request is over if it was known at the last list, and is in neither of the two.
        """
        due, reader = self._due, self._reader
        if due is None:
            return
        if self._due_at is None:
            self._due_at = reader.published
        if reader.next_step < self._due_at:
            return
        self._due = self._due_at = None
        now = frozenset(due)
        over = [request for request in self._seen if request not in now and request not in self._ran]
        self._flight.end_missed(self._names.known(over))
        for request in over:
            self._forget(request)
        self._ran, self._seen = now, self._names.running()

    def _forget(self, request: str) -> None:
        self._names.end(request)
        self._computing.pop(request, None)
        with self._heard:
            self._options.pop(request, None)

    def _new_notes(self, options: RequestOptions) -> list[str]:
        """Return what computes a request, as far as that was not noted yet."""
        known = self._computing.get(options.request)
        self._computing[options.request] = (options.adapter, options.weights)
        if len(self._computing) > _REMEMBERED:
            self._computing.popitem(last=False)
        adapter = [f"adapter {options.adapter}"] if options.adapter and known is None else []
        changed = options.weights and (known is None or known[1] != options.weights)
        return [*adapter, *([f"weights {options.weights}"] if changed else [])]

    def _chosen(self, name: str, selection: str) -> tuple[int, ...] | None:
        """Return the indices of the selected sites among the kept ones; None, with a warning, if unreadable."""
        try:
            chosen = {site.name for site in select(selection, self._start.facts.n_layers)}
        except ActscopeError as error:
            log.warning("request %s: rows %r: %s; all sites that are kept are recorded", name, selection, error)
            return None
        return tuple(i for i, site in enumerate(self._start.kept) if site in chosen)

    def _wish_of(self, span: Span) -> tuple[int, ...] | None:
        """Return the sites that a request selected, or None for all.

        Its options are sent before its first row but may arrive up to 1 second later. After that wait all sites are recorded.
        """
        if SpanFlag.HAS_OPTIONS not in span.flags:
            return None
        with self._heard:
            known = span.request in self._options
            if not known and not self._heard.wait_for(lambda: span.request in self._options, _OPTIONS_S):
                self._options[span.request] = None  # do not wait again: all sites from now on
                self._late += 1
            return self._options[span.request]

    def _run(self) -> None:
        try:
            self._read_all()
        finally:
            self._reach(None)

    def _read_all(self) -> None:
        while True:
            ending = self._stop.is_set()
            try:
                self._reach(self._reader.next_step)
                self._reconcile()
                batch = self._reader.read()
            except RingError as error:
                log.error("raw rows: %s; no more are recorded", error)
                return
            if batch is None:
                if ending:
                    return
                self._reader.wait(0.2)
                continue
            for step in batch.steps:
                if step.number < self._taken or (step.number == self._taken and step.meta.size):
                    continue  # a previous sidecar recorded it
                try:
                    self._take(step)
                except Exception:  # the boundary: one step that cannot be taken must not end the recording
                    log.exception("a step of raw rows could not be recorded")
            self._taken = batch.steps[-1].number
            if time.monotonic() - self._told_at > _TELL_EVERY_S:
                self._told_at = time.monotonic()
                with self._telling:
                    self._tell(Taken(self._taken, self._reader.next_row, self.counts()))
            self._tell_of_missed()

    def _tell_of_missed(self) -> None:
        missed = self._reader.stats().missed_rows
        if missed and not self._missed:
            log.warning(
                "raw rows come faster than they are recorded: %d were overwritten unread so far (counted on)", missed
            )
        self._missed = missed

    def _take(self, step: StepRecord) -> None:
        if step.generation != self._generation:
            self._learn(step.generation)
        groups: dict[tuple[int, ...] | None, list[Span]] = {}
        for span in step.spans:
            if SpanFlag.FIRST in span.flags:
                self._names.name(span.request, begins=True)
            groups.setdefault(self._wish_of(span), []).append(replace(span, flags=span.flags & ~SpanFlag.HAS_OPTIONS))
        for sites, spans in groups.items():
            self._write(step, sites, spans, whole=len(groups) == 1)
        for span in step.spans:
            if SpanFlag.END in span.flags:
                self._forget(span.request)

    def _learn(self, generation: int) -> None:
        """Load a generation's probe table, so that triggers read the right columns."""
        self._generation = generation
        try:
            self._flight.learn(read_table(self._start.card_id, generation))
        except RingError as error:
            if generation not in self._untabled:
                self._untabled.add(generation)
                log.error("probe table %d: %s; rules do not fire on its scores", generation, error)

    def _write(self, step: StepRecord, sites: tuple[int, ...] | None, spans: list[Span], *, whole: bool) -> None:
        named = tuple(replace(span, request=self.name(span.request)) for span in spans)
        rows, meta = step.rows, step.meta
        if len(rows) != sum(span.n_rows for span in step.spans):
            rows, meta = rows[:0], meta[:0]  # the rows never reached the ring; END spans still count
            named = tuple(replace(span, n_rows=0, offset=0) for span in named if span.flags)
        elif not whole:
            index = np.concatenate([np.arange(span.offset, span.offset + span.n_rows) for span in spans])
            rows, meta = rows[index], meta[index].copy()
            named, meta["span"] = _packed(named)
        if not named:
            return
        frames = [Frame(SCORES, np.ascontiguousarray(rows[:, : self._heads]).view(np.float32))]
        if len(rows):
            frames += [self._frame(rows, i) for i in (range(len(self._start.kept)) if sites is None else sites)]
        self._flight.write(Step(step.number, step.time_ns, named, meta, step.generation), frames)

    def _frame(self, rows: np.ndarray, index: int) -> Frame:
        d = self._start.facts.d_model
        at = self._heads + index * d
        dtype = "bfloat16" if self._reader.spec.dtype == "bfloat16" else None
        return Frame(self._start.kept[index], np.ascontiguousarray(rows[:, at : at + d]), dtype)


def _packed(spans: tuple[Span, ...]) -> tuple[tuple[Span, ...], np.ndarray]:
    """Return the spans with contiguous rows, and the `span` index of each row."""
    moved, offset = [], 0
    for span in spans:
        moved.append(replace(span, offset=offset))
        offset += span.n_rows
    return tuple(moved), np.repeat(np.arange(len(spans)), [span.n_rows for span in spans])
