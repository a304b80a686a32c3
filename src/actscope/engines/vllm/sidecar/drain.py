"""Raw rows out of shared memory, into the flight recorder."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from actscope.engines.vllm.sidecar_protocol import RequestOptions, SidecarStart, external_id, row_layout
from actscope.errors import ActscopeError, RingError
from actscope.frames import SCORES, Frame, Span, SpanFlag, Step
from actscope.recording.flight.recorder import FlightRecorder
from actscope.ring.discovery import read_table
from actscope.ring.host import RingReader, StepRecord
from actscope.sites import select

log = logging.getLogger("actscope.vllm")

_REMEMBERED = 1 << 16
#: How long a wish may come behind its request's first row, and a mark before it.
_WISH_S, _MARK_WAITS_S = 1.0, 600.0
#: How often the model's process is told what has been taken: what was taken later comes again if the sidecar dies.
_TELL_EVERY_S = 0.02


class Names:
    """What recordings call requests: the id that clients know, unless that has been used before; then the engine's own."""

    def __init__(self, used: frozenset[str]) -> None:
        self._used = set(used)
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, request: str) -> str:
        """Any thread may ask; all are told the same."""
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


@dataclass(slots=True)
class DrainStats:
    """Exact: `missed_rows` were overwritten before they were read, `dropped_rows` never were in shared memory."""

    steps: int = 0
    rows: int = 0
    missed_rows: int = 0
    dropped_rows: int = 0


class RowDrain:
    """One thread from the ring of wide rows to `flight`. A request that asked for some sites gets only those."""

    def __init__(self, start: SidecarStart, flight: FlightRecorder, tell_taken: Callable[[int], None]) -> None:
        self._start, self._flight, self._tell_taken = start, flight, tell_taken
        self._taken, self._told_at = start.taken, 0.0
        self._reader = RingReader.attach(start.rows_ring, from_oldest=True)
        self._heads = row_layout(start.columns, self._reader.spec.dtype)
        self._names = Names(frozenset(flight.recorder.known_requests))
        self._wishes: OrderedDict[str, tuple[int, ...] | None] = OrderedDict()
        self._heard = threading.Condition()
        self._untabled: set[int] = set()
        self._generation = -1
        self._missed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actscope-drain", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take what is still in the ring, then end."""
        self._stop.set()
        self._thread.join(timeout=20)

    def name(self, request: str) -> str:
        return self._names.name(request)

    def stats(self) -> DrainStats:
        known = self._reader.stats()
        return DrainStats(known.steps, known.rows, known.missed_rows, known.dropped_rows)

    def hear(self, wish: RequestOptions) -> None:
        """A request has begun that asked for something."""
        name = self.name(wish.request)
        with self._heard:
            self._wishes[wish.request] = self._chosen(name, wish.rows) if wish.rows else None
            if len(self._wishes) > _REMEMBERED:
                self._wishes.popitem(last=False)
            self._heard.notify_all()
        if wish.keep:
            self._flight.mark(name, wish.keep, wait_seconds=_MARK_WAITS_S)

    def _chosen(self, name: str, selection: str) -> tuple[int, ...] | None:
        """Places of the sites that are named among those that are kept; None, with a warning, where it cannot be read."""
        try:
            chosen = {site.name for site in select(selection, self._start.facts.n_layers)}
        except ActscopeError as error:
            log.warning("request %s: rows %r: %s; all sites that are kept are recorded", name, selection, error)
            return None
        return tuple(i for i, site in enumerate(self._start.kept) if site in chosen)

    def _wish_of(self, span: Span) -> tuple[int, ...] | None:
        """The sites that a request asked for. Its wish is on its way before its first row is; it may take a moment more."""
        if SpanFlag.WISH not in span.flags:
            return None
        with self._heard:
            known = span.request in self._wishes
            if not known and not self._heard.wait_for(lambda: span.request in self._wishes, _WISH_S):
                self._wishes[span.request] = None  # it is not waited for again: all sites, from now on
            return self._wishes[span.request]

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
                    continue  # a sidecar before this one had it
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
            groups.setdefault(self._wish_of(span), []).append(replace(span, flags=span.flags & ~SpanFlag.WISH))
        for sites, spans in groups.items():
            self._write(step, sites, spans, whole=len(groups) == 1)

    def _learn(self, generation: int) -> None:
        """Have rules read the right columns from now on."""
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
            rows, meta = rows[:0], meta[:0]  # they never were in the ring; what ended, ended all the same
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
    """The same spans with their rows one behind the other, and the `span` of each row."""
    moved, offset = [], 0
    for span in spans:
        moved.append(replace(span, offset=offset))
        offset += span.n_rows
    return tuple(moved), np.repeat(np.arange(len(spans)), [span.n_rows for span in spans])
