"""RowDrain: moves raw rows from shared memory into the flight recorder."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from actscope.counters import counted, counting
from actscope.engines.vllm.sidecar_protocol import RequestOptions, SidecarStart, external_id, row_layout
from actscope.errors import ActscopeError, RingError
from actscope.frames import SCORES, Frame, Span, SpanFlag, Step
from actscope.recording.flight.recorder import FlightRecorder
from actscope.ring.discovery import read_table
from actscope.ring.host import RingReader, StepRecord
from actscope.sites import select

log = logging.getLogger("actscope.vllm")

_REMEMBERED = 1 << 16
#: How long to wait for a request's options after its first row, and for its first row after a mark.
_OPTIONS_S, _MARK_WAITS_S = 1.0, 600.0
#: How often `Taken` is sent. Steps read after the last one are read again if the sidecar dies.
_TELL_EVERY_S = 0.02


class Names:
    """Request names in recordings: the client's id, or the engine's own id if the client's was used before."""

    def __init__(self, used: frozenset[str]) -> None:
        self._used = set(used)
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, request: str) -> str:
        """Return a request's name. Thread-safe; repeated calls return the same name."""
        with self._lock:
            return self._name(request)

    def _name(self, request: str) -> str:
        found = self._names.get(request)
        if found is None:
            external = external_id(request)
            found = request if external in self._used else external
            self._used.add(found)
            self._names[request] = found
            if len(self._names) > _REMEMBERED:
                self._names.popitem(last=False)
        return found


@counting("drain")
@dataclass(slots=True)
class DrainStats:
    """Exact counts. `missed_rows` were overwritten before they were read; `dropped_rows` never reached shared memory."""

    steps: int = counted("work", "Passes of raw rows that the sidecar read.")
    rows: int = counted("work", "Raw rows that the sidecar read.")
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


class RowDrain:
    """One thread that copies rows from the ring of wide rows to `flight`.

    A request with a selection of sites gets only those.
    """

    def __init__(self, start: SidecarStart, flight: FlightRecorder, tell_taken: Callable[[int], None]) -> None:
        self._start, self._flight, self._tell_taken = start, flight, tell_taken
        self._taken, self._told_at = start.taken, 0.0
        self._reader = RingReader.attach(start.rows_ring, from_oldest=True)
        self._heads = row_layout(start.columns, self._reader.spec.dtype)
        self._names = Names(frozenset(flight.recorder.known_requests))
        self._options: OrderedDict[str, tuple[int, ...] | None] = OrderedDict()
        self._computing: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._heard = threading.Condition()
        self._untabled: set[int] = set()
        self._generation = -1
        self._missed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actscope-drain", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Record what is still in the ring, then end the thread. Waits at most 20 seconds."""
        self._stop.set()
        self._thread.join(timeout=20)

    def name(self, request: str) -> str:
        """Return the name of a request in the recording. Thread-safe; repeated calls return the same name."""
        return self._names.name(request)

    def stats(self) -> DrainStats:
        """Return exact counts since the drain attached to the ring."""
        known = self._reader.stats()
        return DrainStats(known.steps, known.rows, known.missed_rows, known.dropped_rows)

    def hear(self, options: RequestOptions) -> None:
        """Store a request's options, note what computes it, and mark the request if it is to be kept."""
        name = self.name(options.request)
        for note in self._new_notes(options):
            self._flight.note(name, note)
        with self._heard:
            self._options[options.request] = self._chosen(name, options.rows) if options.rows else None
            if len(self._options) > _REMEMBERED:
                self._options.popitem(last=False)
            self._heard.notify_all()
        if options.keep:
            self._flight.mark(name, options.keep, wait_seconds=_MARK_WAITS_S)

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
            return self._options[span.request]

    def _run(self) -> None:
        while True:
            ending = self._stop.is_set()
            try:
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
                self._tell_taken(self._taken)
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
            groups.setdefault(self._wish_of(span), []).append(replace(span, flags=span.flags & ~SpanFlag.HAS_OPTIONS))
        for sites, spans in groups.items():
            self._write(step, sites, spans, whole=len(groups) == 1)

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
