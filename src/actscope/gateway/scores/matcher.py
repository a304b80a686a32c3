"""From the ring to the request logs: rows by exact request id and absolute position, checked by token id."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from actscope.errors import RingError
from actscope.frames import SPURIOUS_ROWS, RowFlag, Span, SpanFlag
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.part_merger import Joiner, PartMerger, PartRows
from actscope.gateway.scores.probe_table import ProbeTable, Tables, join_tables
from actscope.gateway.scores.request_log import RequestLog, Source
from actscope.gateway.scores.request_store import Sessions
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader, StepBatch, StepRecord

_log = logging.getLogger(__name__)

#: Rows that say nothing of a token that is part of the request.

_CACHED = int(RowFlag.CACHED)
_END = int(SpanFlag.END)

_VLLM_SUFFIX = re.compile(r"-[0-9a-f]{8}$")

#: Pauses between two looks at the ring: while rows come, and while it is quiet.
_BUSY_SECONDS = 0.003
_QUIET_SECONDS = 0.02
_QUIET_AFTER = 300


def external_id(kind: str) -> Callable[[str], str]:
    """How an engine of this kind makes the ids in its ring from the ids of its answers, reversed."""
    if kind == "vllm":
        return lambda request: _VLLM_SUFFIX.sub("", request)
    return lambda request: request


@dataclass(slots=True)
class MatchCounts:
    """What came out of the ring, and what could not be used, exactly; the sums over an engine's parts."""

    steps: int = 0
    rows: int = 0
    missed_steps: int = 0
    missed_rows: int = 0
    dropped_rows: int = 0
    spurious_rows: int = 0
    mismatched_rows: int = 0
    unreadable_tables: int = 0


class RingPart:
    """One part's ring, with its probe tables."""

    def __init__(self, card: EngineCard, reader: RingReader) -> None:
        self.card = card
        self.reader = reader
        self.tables = Tables(card)


class Matcher:
    """Reads one engine's ring, or those of all its parts, and hands each row to the log that it belongs to.

    `drain` is called when a token has come (the rows before it are in the ring by then), and by a timer for requests
    that others sent. A timer and not a thread on the ring's futex: `RingReader.wait` excludes `read` while it sleeps,
    and a second thread costs the token path a turn of the GIL.
    """

    def __init__(self, sessions: Sessions, parts: Sequence[RingPart], texts: TokenTexts) -> None:
        self._sessions = sessions
        self.parts = tuple(parts)
        self._card = parts[0].card
        self._texts = texts
        self._external = external_id(self._card.kind)
        self._special = frozenset(self._card.special_ids)
        self._joiners: dict[str, Joiner] = {}
        self._seams = PartMerger()
        self._spurious = self._mismatched = 0
        self._logged: set[str] = set()
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def table(self) -> ProbeTable:
        """The probes in force as far as they are known, of all parts."""
        latest = [part.tables.latest for part in self.parts]
        return latest[0] if len(latest) == 1 else join_tables(latest)

    def start(self) -> None:
        """Begin to look at the ring by itself, until `close`."""
        loop = asyncio.get_running_loop()
        if not self._closed:
            self.drain()
            pause = _QUIET_SECONDS if self._quiet > _QUIET_AFTER else _BUSY_SECONDS
            self._timer = loop.call_later(pause, self.start)

    def drain(self) -> None:
        """Take everything that is in the ring now. What goes wrong with a row harms no other request."""
        self._quiet += 1
        for part in self.parts:
            try:
                self._take_all(part)
            except Exception:
                if "drain" not in self._logged:
                    self._logged.add("drain")
                    _log.exception("ring %s: rows could not be used; it is read on", part.card.ring)

    def _take_all(self, part: RingPart) -> None:
        while not self._closed:
            try:
                batch = part.reader.read()
            except RingError as error:
                self._once("ring", f"ring {part.card.ring}: {error}")
                self.close()
                return
            if batch is None:
                return
            self._quiet = 0
            self._route(part, batch)

    def counts(self) -> MatchCounts:
        """The counts up to the last drain."""
        counts = MatchCounts(spurious_rows=self._spurious, mismatched_rows=self._mismatched)
        for part in self.parts:
            for name, value in asdict(part.reader.stats()).items():
                if name in MatchCounts.__slots__:
                    setattr(counts, name, getattr(counts, name) + value)
            counts.unreadable_tables += part.tables.unreadable
        return counts

    def close(self) -> None:
        """Stop reading. What the logs have stays."""
        if not self._closed:
            self._closed = True
            for part in self.parts:
                part.reader.close()
            if self._timer is not None:
                self._timer.cancel()

    @property
    def closed(self) -> bool:
        return self._closed

    def new_log(self, request: str, response: str, model: str, *, follows_rows: bool) -> RequestLog:
        """A log for a completion that the gateway is about to send."""
        log = self._log(request, response=response, model=model, follows_rows=follows_rows)
        log.first_columns = self.table.columns
        return log

    def flush(self, log: RequestLog) -> None:
        """Give a log that is about to end the rows that not all parts have told."""
        joiner = self._joiners.pop(log.request, None)
        if joiner is not None:
            joiner.flush(time.monotonic_ns())

    def _route(self, part: RingPart, batch: StepBatch) -> None:
        for step in batch.steps:
            table = part.tables.of(step.generation)
            for span in step.spans:
                log = self._log_of(span, step)
                if log is not None:
                    self._deliver(log, part, span, step, table)

    def _log_of(self, span: Span, step: StepRecord) -> RequestLog | None:
        request = self._external(span.request)
        log = self._sessions.get(request)
        if log is None and span.n_rows and not self._sessions.was_forgotten(request):
            log = self._adopt(request, step)
        return log if log is not None and log.state == "running" else None

    def _adopt(self, request: str, step: StepRecord) -> RequestLog:
        """A request that did not come through this gateway."""
        log = self._log(request, model=self._card.model, source="engine", follows_rows=True, began_ns=step.time_ns)
        self._sessions.add(log)
        return log

    def _log(
        self,
        request: str,
        *,
        model: str,
        follows_rows: bool,
        response: str = "",
        source: Source = "gateway",
        began_ns: int | None = None,
    ) -> RequestLog:
        return RequestLog(
            request, response=response, model=model, source=source, follows_rows=follows_rows, began_ns=began_ns,
            special=self._special, texts=self._texts, on_mismatch=self._note_mismatch,
        )  # fmt: skip

    def _note_mismatch(self, log: RequestLog, rows: int) -> None:
        self._mismatched += rows
        self._once(
            "mismatch", f"request {log.request}: a row's token id is not the token at its position; it is not delivered"
        )

    def _deliver(self, log: RequestLog, part: RingPart, span: Span, step: StepRecord, table: ProbeTable | None) -> None:
        if log.follows_rows and log.n_prompt is None and span.n_prompt:
            log.n_prompt = span.n_prompt
        if not log.engine_id:
            log.engine_id = span.request
        taker = log if len(self.parts) == 1 else self._joiner(log).parts[part.card.part]
        if table is not None and span.n_rows and len(step.rows):
            if span.n_rows == 1:
                self._take_one(taker, span.offset, step, table)
            else:
                self._take(taker, span, step, table)
        if int.__and__(span.flags, _END):  # IntFlag's own `&` costs 1 µs
            self._end(log, taker, span, step.time_ns)

    def _joiner(self, log: RequestLog) -> Joiner:
        joiner = self._joiners.get(log.request)
        if joiner is None or joiner.log is not log:
            self._joiners = {name: j for name, j in self._joiners.items() if j.log.state == "running"}
            latest = [part.tables.latest.columns for part in self.parts]
            joiner = self._joiners[log.request] = Joiner(log, latest, self._seams, self._note_mismatch)
        return joiner

    def _end(self, log: RequestLog, taker: RequestLog | PartRows, span: Span, now_ns: int) -> None:
        if isinstance(taker, PartRows):
            taker.end(now_ns)
            if not self._joiners[log.request].ended:
                return
            del self._joiners[log.request]
        log.note_engine_end()
        if log.source == "engine":
            aborted = bool(span.flags & SpanFlag.ABORTED)
            log.finish("aborted" if aborted else "done", "abort" if aborted else None)

    def _take_one(self, taker: RequestLog | PartRows, at: int, step: StepRecord, table: ProbeTable) -> None:
        """The ordinary step: one row, without making arrays of its label."""
        position, token_id, flags, _, _ = step.meta[at].item()
        if flags & SPURIOUS_ROWS:
            self._spurious += 1
        else:
            values = table.gather(step.rows[at : at + 1])
            taker.take_row(position, token_id, values, table.columns, step.time_ns, bool(flags & _CACHED))

    def _take(self, taker: RequestLog | PartRows, span: Span, step: StepRecord, table: ProbeTable) -> None:
        part = slice(span.offset, span.offset + span.n_rows)
        meta, rows = step.meta[part], step.rows[part]
        flags = meta["flags"]
        if (flags & SPURIOUS_ROWS).any():
            genuine = (flags & SPURIOUS_ROWS) == 0
            self._spurious += len(meta) - int(np.count_nonzero(genuine))
            meta, rows, flags = meta[genuine], rows[genuine], flags[genuine]
        cached = (flags & _CACHED) != 0
        for run in _runs(meta["position"], cached):
            first, ids, values = int(meta["position"][run.start]), meta["token_id"][run], table.gather(rows[run])
            taker.take_rows(first, ids, values, table.columns, step.time_ns, bool(cached[run.start]))

    def _once(self, kind: str, message: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            _log.warning(message)


def _runs(positions: np.ndarray, cached: np.ndarray) -> list[slice]:
    """Slices of consecutive positions that are all cached, or all not."""
    n = len(positions)
    if n <= 1:
        return [slice(0, 1)] if n else []
    breaks = np.flatnonzero((np.diff(positions) != 1) | (cached[1:] != cached[:-1])) + 1
    edges = [0, *breaks.tolist(), n]
    return [slice(a, b) for a, b in pairwise(edges)]
