"""Matcher: reads the engine's rings and gives each row to the log of its request, by exact request id.

ring ──▶ `Matcher`: whose row is it? ──▶ (`PartMerger`, for an engine in several parts) ──▶ `RequestLog`: tokens and scores
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from actscope.counters import Counter, CounterReport, counters_of
from actscope.errors import RingError
from actscope.frames import SPURIOUS_ROWS, RowFlag, Span, SpanFlag
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.display_range import DisplayRanges
from actscope.gateway.scores.match_counts import LogCounts, UnmatchedCounts
from actscope.gateway.scores.part_merger import PartMerger, PartRows
from actscope.gateway.scores.probe_table import NO_COLUMNS, Columns, ProbeTable, Tables, join_tables
from actscope.gateway.scores.request_log import RequestLog, Source
from actscope.gateway.scores.request_store import Sessions
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader, StepBatch, StepRecord

_log = logging.getLogger(__name__)

_CACHED = int(RowFlag.CACHED)
_END, _ABORTED = int(SpanFlag.END), int(SpanFlag.ABORTED)

_VLLM_SUFFIX = re.compile(r"-[0-9a-f]{8}$")

#: Polling interval of the ring in seconds: while rows come, and after `_QUIET_AFTER` polls without a row.
_BUSY_SECONDS = 0.003
_QUIET_SECONDS = 0.02
_QUIET_AFTER = 300


def external_id(kind: str) -> Callable[[str], str]:
    """Return the function that maps request ids in the ring of an engine of this kind to the ids in its answers."""
    if kind == "vllm":
        return lambda request: _VLLM_SUFFIX.sub("", request)
    return lambda request: request


@dataclass(slots=True)
class MatchCounts:
    """Exact counts of the rows in the ring and of those that could not be used, summed over an engine's parts."""

    steps: int = 0
    rows: int = 0
    missed_steps: int = 0
    missed_rows: int = 0
    dropped_rows: int = 0
    late_rows: int = 0
    spurious_rows: int = 0
    mismatched_rows: int = 0
    unreadable_tables: int = 0


class RingPart:
    """Ring and probe tables of one part of an engine."""

    def __init__(self, card: EngineCard, reader: RingReader) -> None:
        self.card = card
        self.reader = reader
        self.tables = Tables(card)
        self.counts = UnmatchedCounts()

    def report(self, more: Sequence[Counter] = ()) -> CounterReport:
        """Return the counters of this part's rows in the gateway, and `more` counters."""
        counts = replace(self.counts, unreadable_tables=self.tables.unreadable)
        counters = [*counters_of(self.reader.stats()), *counters_of(counts), *more]
        return CounterReport("gateway", counters, self.card.id, self.card.part)


class Matcher:
    """Reads the rings of all parts of one engine, and gives each row to the log that it belongs to.

    Call `drain` when a token has arrived: the rows before it are in the ring by then. A timer calls it too, for requests that
    other clients sent to the engine. It is a timer and not a thread on the ring's futex, because `RingReader.wait` excludes
    `read` while it sleeps, and a second thread would make the token path wait for the GIL.

    Not thread-safe: everything runs on the event loop's thread.

    Attributes:
        parts: Ring and probe tables of each part.
        ranges: Display ranges learnt from the scores of this engine.
    """

    def __init__(self, sessions: Sessions, parts: Sequence[RingPart], texts: TokenTexts) -> None:
        self._sessions = sessions
        self.parts = tuple(parts)
        self.ranges = DisplayRanges()
        self._card = parts[0].card
        self._texts = texts
        self._external = external_id(self._card.kind)
        self._special = frozenset(self._card.special_ids)
        self._merger = PartMerger([part.tables for part in parts]) if len(parts) > 1 else None
        self._log_counts = LogCounts()
        self._logged: set[str] = set()
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def table(self) -> ProbeTable:
        """Return the probe table in force, as far as it is known, joined over all parts."""
        latest = [part.tables.latest for part in self.parts]
        return latest[0] if len(latest) == 1 else join_tables(latest)

    # --- reading the rings ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Drain the rings now, and on a timer until `close`."""
        loop = asyncio.get_running_loop()
        if not self._closed:
            self.drain()
            pause = _QUIET_SECONDS if self._quiet > _QUIET_AFTER else _BUSY_SECONDS
            self._timer = loop.call_later(pause, self.start)

    def drain(self) -> None:
        """Deliver all rows that are in the rings now. Does not raise: the first error is logged, and reading continues."""
        self._quiet += 1
        for part in self.parts:
            try:
                self._drain_part(part)
            except Exception:
                part.counts.faults += 1
                if "drain" not in self._logged:
                    self._logged.add("drain")
                    _log.exception("ring %s: rows could not be used; reading continues", part.card.ring)

    def _drain_part(self, part: RingPart) -> None:
        while not self._closed:
            try:
                batch = part.reader.read()
            except RingError as error:
                part.counts.damaged_rings += 1
                self._warn_once("ring", f"ring {part.card.ring}: {error}")
                self.close()
                return
            if batch is None:
                return
            self._quiet = 0
            self._route(part, batch)

    def counts(self) -> MatchCounts:
        """Return the counts up to the last drain."""
        counts = MatchCounts(mismatched_rows=self._log_counts.mismatched_rows)
        for part in self.parts:
            for name, value in asdict(part.reader.stats()).items():
                if name in MatchCounts.__slots__:
                    setattr(counts, name, getattr(counts, name) + value)
            counts.unreadable_tables += part.tables.unreadable
            counts.spurious_rows += part.counts.spurious_rows
            counts.late_rows += part.counts.late_rows
        return counts

    def reports(self) -> list[CounterReport]:
        """Return the counters of each part up to the last drain. Those of the requests are with the first part."""
        first, *others = self.parts
        return [first.report(counters_of(self._log_counts)), *(part.report() for part in others)]

    def close(self) -> None:
        """Stop reading. Logs keep what they have. Idempotent."""
        if not self._closed:
            self._closed = True
            for part in self.parts:
                part.reader.close()
            if self._timer is not None:
                self._timer.cancel()

    @property
    def closed(self) -> bool:
        """Return whether `close` was called, or a ring has failed."""
        return self._closed

    # --- logs -------------------------------------------------------------------------------------------------------------

    def new_log(self, request: str, response: str, model: str, *, follows_rows: bool) -> RequestLog:
        """Return a log for a completion that the gateway is about to send."""
        columns = self.table.columns
        return self._log(request, response=response, model=model, follows_rows=follows_rows, first_columns=columns)

    def flush(self, log: RequestLog) -> None:
        """Give a log that is about to end the rows that not all parts have published."""
        if self._merger is not None:
            self._merger.flush(log, time.monotonic_ns())

    def _log(
        self,
        request: str,
        *,
        model: str,
        follows_rows: bool,
        response: str = "",
        source: Source = "gateway",
        began_ns: int | None = None,
        first_columns: Columns = NO_COLUMNS,
    ) -> RequestLog:
        log = RequestLog(
            request, response=response, model=model, source=source, follows_rows=follows_rows, began_ns=began_ns,
            special=self._special, texts=self._texts, counts=self._log_counts, first_columns=first_columns,
        )  # fmt: skip
        self.ranges.follow(log)
        return log

    # --- from a step to the logs ------------------------------------------------------------------------------------------

    def _route(self, part: RingPart, batch: StepBatch) -> None:
        for step in batch.steps:
            table = part.tables.of(step.generation)
            scored = table if len(step.rows) else None
            for span in step.spans:
                log = self._log_of(span, step)
                if log is None:
                    self._count_late(part, span, step)
                    continue
                log.see_span(span)
                target = log if self._merger is None else self._merger.part_of(log, part.card.part)
                if scored is not None and span.n_rows:
                    self._deliver(target, span, step, scored, part.counts)
                if int.__and__(span.flags, _END):  # IntFlag's own `&` costs 1 µs
                    target.end_rows(step.time_ns, aborted=bool(int.__and__(span.flags, _ABORTED)))

    def _log_of(self, span: Span, step: StepRecord) -> RequestLog | None:
        """Return the log that takes the span's rows; None if its request is not running or was forgotten."""
        request = self._external(span.request)
        log = self._sessions.get(request)
        if log is None and span.n_rows and not self._sessions.was_forgotten(request):
            log = self._adopt(request, step)
        return log if log is not None and log.state == "running" else None

    def _adopt(self, request: str, step: StepRecord) -> RequestLog:
        """Add a log for a request that did not come through this gateway."""
        log = self._log(request, model=self._card.model, source="engine", follows_rows=True, began_ns=step.time_ns)
        self._sessions.add(log)
        return log

    def _count_late(self, part: RingPart, span: Span, step: StepRecord) -> None:
        if len(step.rows) and span.n_rows:
            log = self._sessions.get(self._external(span.request))
            meta = step.meta[span.offset : span.offset + span.n_rows]
            part.counts.add_late(meta, log.state if log else None, log.present if log else 0)

    def _deliver(
        self,
        target: RequestLog | PartRows,
        span: Span,
        step: StepRecord,
        table: ProbeTable,
        counts: UnmatchedCounts,
    ) -> None:
        if span.n_rows > 1:
            self._deliver_rows(target, span, step, table, counts)
            return
        at = span.offset  # the usual step: one row, without making arrays of its label
        position, token_id, flags, _, _ = step.meta[at].item()
        if flags & SPURIOUS_ROWS:
            counts.spurious_rows += 1
        else:
            values = table.gather(step.rows[at : at + 1])
            target.take_row(position, token_id, values, table.columns, step.time_ns, bool(flags & _CACHED))

    def _deliver_rows(
        self,
        target: RequestLog | PartRows,
        span: Span,
        step: StepRecord,
        table: ProbeTable,
        counts: UnmatchedCounts,
    ) -> None:
        part = slice(span.offset, span.offset + span.n_rows)
        meta, rows = step.meta[part], step.rows[part]
        flags = meta["flags"]
        if (flags & SPURIOUS_ROWS).any():
            genuine = (flags & SPURIOUS_ROWS) == 0
            counts.spurious_rows += len(meta) - int(np.count_nonzero(genuine))
            meta, rows, flags = meta[genuine], rows[genuine], flags[genuine]
        cached = (flags & _CACHED) != 0
        for run in _runs(meta["position"], cached):
            first, ids, values = int(meta["position"][run.start]), meta["token_id"][run], table.gather(rows[run])
            target.take_rows(first, ids, values, table.columns, step.time_ns, bool(cached[run.start]))

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            _log.warning(message)


def _runs(positions: np.ndarray, cached: np.ndarray) -> list[slice]:
    """Return slices of consecutive positions that are either all cached or all not."""
    n = len(positions)
    if n <= 1:
        return [slice(0, 1)] if n else []
    breaks = np.flatnonzero((np.diff(positions) != 1) | (cached[1:] != cached[:-1])) + 1
    edges = [0, *breaks.tolist(), n]
    return [slice(a, b) for a, b in pairwise(edges)]
