"""Matcher: reads the engines' rings and gives each row to the log of its request, by exact request id.

rings ──▶ `Matcher`: whose row is it? ──▶ (`PartMerger`, for an engine in several parts) ──▶ `RequestLog`: tokens and scores
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from actscope.counters import CounterReport, counters_of, summed
from actscope.errors import RingError
from actscope.frames import SPURIOUS_ROWS, RowFlag, Span, SpanFlag
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.display_range import DisplayRanges
from actscope.gateway.scores.match_counts import LogCounts, UnmatchedCounts
from actscope.gateway.scores.part_merger import PartRows
from actscope.gateway.scores.probe_table import EMPTY_TABLE, NO_COLUMNS, Columns, ProbeTable, Versions
from actscope.gateway.scores.replica import BoundRequest, Replica, RingPart
from actscope.gateway.scores.request_ids import response_id
from actscope.gateway.scores.request_log import RequestLog, Source
from actscope.gateway.scores.request_store import Sessions
from actscope.ring.host import StepBatch, StepRecord

_log = logging.getLogger(__name__)

_CACHED = int(RowFlag.CACHED)
_FIRST, _END, _ABORTED = int(SpanFlag.FIRST), int(SpanFlag.END), int(SpanFlag.ABORTED)

#: Polling interval of the ring in seconds: while rows come, and after `_QUIET_AFTER` polls without a row.
_BUSY_SECONDS = 0.003
_QUIET_SECONDS = 0.02
_QUIET_AFTER = 300


@dataclass(slots=True)
class MatchCounts:
    """Exact counts of the rows in the ring and of those that could not be used, summed over all engines and their parts."""

    steps: int = 0
    rows: int = 0
    missed_steps: int = 0
    missed_rows: int = 0
    dropped_rows: int = 0
    late_rows: int = 0
    spurious_rows: int = 0
    mismatched_rows: int = 0
    unreadable_tables: int = 0


class Matcher:
    """Reads the rings of all engines of a server, and gives each row to the log that it belongs to.

    A request runs in one engine (replica), and is found by that engine's own id of it. Ids that clients choose are names only.

    Call `drain` when a token has arrived: the rows before it are in the ring by then. A timer calls it too, for requests that
    other clients sent to the engine. It is a timer and not a thread on the ring's futex, because `RingReader.wait` excludes
    `read` while it sleeps, and a second thread would make the token path wait for the GIL.

    Not thread-safe: everything runs on the event loop's thread.

    Attributes:
        replicas: The engines that are read.
        versions: Numbers of the probes' versions in all engines.
        ranges: Display ranges learnt from the scores of this server.
    """

    def __init__(self, sessions: Sessions, replicas: Sequence[Replica], texts: TokenTexts) -> None:
        self._sessions = sessions
        self.replicas = tuple(replicas)
        self.versions = Versions()
        self.ranges = DisplayRanges()
        self._texts = texts
        self._log_counts = LogCounts()
        self._n_adopted = 0
        self._past = MatchCounts()
        self._past_reports: list[CounterReport] = []
        self._logged: set[str] = set()
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, replica: Replica) -> None:
        """Read the rings of one more engine."""
        self.replicas = (*self.replicas, replica)
        self.versions.are_shared |= len(self.replicas) > 1

    def remove(self, replica: Replica, reason: str) -> None:
        """Stop reading the rings of an engine that is gone. Logs of requests that went to it directly fail with `reason`."""
        self._past = self._counted(self._past, replica)
        reports = [*self._past_reports, *(part.report() for part in replica.parts)]
        self._past_reports = [CounterReport("gateway", summed(reports))]
        self.replicas = tuple(other for other in self.replicas if other is not replica)
        replica.close(reason)

    def sort(self, ids: Sequence[str]) -> None:
        """Set the order of the engines: that of the ids of their first cards."""
        self.replicas = tuple(sorted(self.replicas, key=lambda replica: ids.index(replica.id)))

    @property
    def table(self) -> ProbeTable:
        """Return the probe table in force, as far as it is known: the first engine's, joined over its parts."""
        return self.replicas[0].table if self.replicas else EMPTY_TABLE

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
        for replica in self.replicas:
            for part in replica.parts:
                try:
                    self._drain_part(replica, part)
                except Exception:
                    part.counts.faults += 1
                    if "drain" not in self._logged:
                        self._logged.add("drain")
                        _log.exception("ring %s: rows could not be used; reading continues", part.card.ring)

    def _drain_part(self, replica: Replica, part: RingPart) -> None:
        while not (self._closed or replica.failure):
            try:
                batch = part.reader.read()
            except RingError as error:
                part.counts.damaged_rings += 1
                replica.failure = f"ring {part.card.ring}: {error}"
                _log.warning("engine %s: %s; it is not read any more", replica.id, replica.failure)
                return
            if batch is None:
                return
            self._quiet = 0
            self._route(replica, part, batch)

    def counts(self) -> MatchCounts:
        """Return the counts up to the last drain, of all engines that were ever read."""
        counts = self._past
        for replica in self.replicas:
            counts = self._counted(counts, replica)
        return replace(counts, mismatched_rows=self._log_counts.mismatched_rows)

    def _counted(self, counts: MatchCounts, replica: Replica) -> MatchCounts:
        """Return counts with those of an engine's rings added."""
        return MatchCounts(**{name: value + getattr(counts, name) for name, value in asdict(read_of(replica)).items()})

    def reports(self) -> list[CounterReport]:
        """Return the counters of each part of each engine up to the last drain, and those of no engine that is read.

        The latter are those of the requests, which are the server's, and those of engines that are gone.
        """
        gone = [one for one in summed(self._past_reports) if one.kind != "now"]
        server = CounterReport("gateway", [*counters_of(self._log_counts), *gone])
        return [*(part.report() for replica in self.replicas for part in replica.parts), server]

    def close(self) -> None:
        """Stop reading. Logs keep what they have. Idempotent."""
        if not self._closed:
            self._closed = True
            for replica in self.replicas:
                replica.close()
            if self._timer is not None:
                self._timer.cancel()

    @property
    def closed(self) -> bool:
        """Return whether `close` was called."""
        return self._closed

    # --- logs -------------------------------------------------------------------------------------------------------------

    def new_log(self, request: str, response: str, model: str, *, follows_rows: bool) -> RequestLog:
        """Return a log for a completion that the gateway is about to send."""
        columns = self.table.columns
        return self._log(request, response=response, model=model, follows_rows=follows_rows, first_columns=columns)

    def flush(self, log: RequestLog) -> None:
        """Give a log that is about to end the rows that not all parts of its engine have published."""
        for replica in self.replicas:
            if replica.merger is not None and replica.id == log.replica:
                replica.merger.flush(log, time.monotonic_ns())

    def _log(
        self,
        request: str,
        *,
        model: str,
        follows_rows: bool,
        response: str = "",
        external: str = "",
        replica: Replica | None = None,
        source: Source = "gateway",
        began_ns: int | None = None,
        first_columns: Columns = NO_COLUMNS,
    ) -> RequestLog:
        replica = replica or (self.replicas[0] if self.replicas else None)
        log = RequestLog(
            request, response=response, external=external, model=model, source=source, follows_rows=follows_rows,
            began_ns=began_ns, special=replica.special if replica else frozenset(), texts=self._texts,
            counts=self._log_counts, first_columns=first_columns,
        )  # fmt: skip
        self.ranges.follow(log)
        return log

    # --- from a step to the logs ------------------------------------------------------------------------------------------

    def _route(self, replica: Replica, part: RingPart, batch: StepBatch) -> None:
        number, merger = part.card.part, replica.merger
        draws = part is replica.parts[-1]  # the last part draws the tokens
        for step in batch.steps:
            part.passes.take(step)
            timed = draws and step.times.scheduled_ns
            table = part.tables.of(step.generation)
            scored = table if len(step.rows) else None
            for span in step.spans:
                bound = replica.find(span, number) or self._bind(replica, number, span, step)
                if bound is None:
                    _count_late(part, span, step, None)
                    continue
                ended, log = int.__and__(span.flags, _END), bound.log  # IntFlag's own `&` costs 1 µs
                if log.state == "running":
                    log.see_span(span)
                    if timed and span.n_rows:
                        log.times.see_pass(step.number, span.first_position, log.present)
                    if step.weights != log.weights and span.n_rows:
                        log.see_weights(span.first_position, step.weights)
                    target = log if merger is None else merger.part_of(log, number)
                    if scored is not None and span.n_rows:
                        self._deliver(target, span, step, scored, part.counts)
                    if ended:
                        target.end_rows(step.time_ns, aborted=bool(int.__and__(span.flags, _ABORTED)))
                else:
                    _count_late(part, span, step, log)
                if ended:
                    replica.end(span, number, bound)

    def _bind(self, replica: Replica, part: int, span: Span, step: StepRecord) -> BoundRequest | None:
        """Bind a request to its log: the known one, else a new one. None if it is unknown and has no rows, or was forgotten."""
        sessions, external = self._sessions, replica.external(span.request)
        anew = replica.ids_recur and bool(int.__and__(span.flags, _FIRST))
        log = sessions.own(external)
        if log is None or log.engine_id not in (
            "",
            span.request,
        ):  # no request of ours has this id, or another one shares it
            log = sessions.adopted(span.request)
        if log is not None and replica.ids_recur and log.engine_id and (anew or log.replica != replica.id):
            log = None
        if log is None:
            if not span.n_rows or (sessions.was_forgotten(span.request) and not anew):
                return None
            log = self._adopt(replica, span.request, external, step)
        bound = replica.bind(span, part, log, sessions.holds)
        sessions.name(log, span.request)
        return bound

    def _adopt(self, replica: Replica, request: str, external: str, step: StepRecord) -> RequestLog:
        """Add a log for a request that did not come through this gateway, under the engine's own id of it."""
        if replica.ids_recur:
            self._n_adopted += 1
            request = f"{request}:{self._n_adopted}"
        log = self._log(
            request, response=response_id(external), external=external, model=replica.card.model, replica=replica,
            source="engine", follows_rows=True, began_ns=step.time_ns,
        )  # fmt: skip
        self._sessions.add(log)
        return log

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


def read_of(replica: Replica) -> MatchCounts:
    """Return the counts of the rings of one engine."""
    counts = MatchCounts()
    for part in replica.parts:
        for name, value in asdict(part.reader.stats()).items():
            if name in MatchCounts.__slots__:
                setattr(counts, name, getattr(counts, name) + value)
        counts.unreadable_tables += part.tables.unreadable
        counts.spurious_rows += part.counts.spurious_rows
        counts.late_rows += part.counts.late_rows
    return counts


def _count_late(part: RingPart, span: Span, step: StepRecord, log: RequestLog | None) -> None:
    """Count rows of a request whose log has ended, or that no log takes (None)."""
    if len(step.rows) and span.n_rows:
        meta = step.meta[span.offset : span.offset + span.n_rows]
        part.counts.add_late(meta, log.state if log else None, log.present if log else 0)


def _runs(positions: np.ndarray, cached: np.ndarray) -> list[slice]:
    """Return slices of consecutive positions that are either all cached or all not."""
    n = len(positions)
    if n <= 1:
        return [slice(0, 1)] if n else []
    breaks = np.flatnonzero((np.diff(positions) != 1) | (cached[1:] != cached[:-1])) + 1
    edges = [0, *breaks.tolist(), n]
    return [slice(a, b) for a, b in pairwise(edges)]
