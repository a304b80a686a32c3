"""One engine of a server: the rings of its parts, and which log takes the rows of each of its requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from actscope.counters import CounterReport, counters_of
from actscope.frames import Span, SpanFlag
from actscope.gateway.scores.match_counts import UnmatchedCounts
from actscope.gateway.scores.part_merger import PartMerger
from actscope.gateway.scores.pass_ledger import PassLedger
from actscope.gateway.scores.probe_table import ProbeTable, Tables, Versions, join_tables
from actscope.gateway.scores.request_ids import external_id
from actscope.gateway.scores.request_log import RequestLog
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader

_FIRST = int(SpanFlag.FIRST)
#: Number of requests from which those that are in no log any more are dropped.
_PRUNED_FROM = 1024


class RingPart:
    """Ring, probe tables and latest passes of one part of an engine."""

    def __init__(self, card: EngineCard, reader: RingReader, versions: Versions | None = None) -> None:
        self.card = card
        self.reader = reader
        self.tables = Tables(card, versions)
        self.counts = UnmatchedCounts()
        self.passes = PassLedger()

    def report(self) -> CounterReport:
        """Return the counters of this part's rows in the gateway."""
        counts = replace(self.counts, unreadable_tables=self.tables.unreadable)
        counters = [*counters_of(self.reader.stats()), *counters_of(counts)]
        return CounterReport("gateway", counters, self.card.id, self.card.part)


@dataclass(slots=True)
class BoundRequest:
    """A request in the rings and its log. `begun` and `ended` have one bit for each part."""

    log: RequestLog
    begun: int = 0
    ended: int = 0


class Replica:
    """The rings of one engine, and the requests in them by the engine's own ids.

    Attributes:
        parts: Ring and probe tables of each part.
        external: Maps a request id in the ring to the id that clients see.
        merger: Merges the rows of the parts; None if there is one part.
        ids_recur: Whether two requests may have the same id in the rings: vLLM was told not to make ids unique.
        special: Ids of special tokens.
        failure: Why the rings are not read any more; "" while they are.
    """

    def __init__(self, parts: Sequence[RingPart]) -> None:
        self.parts = tuple(parts)
        self.external = external_id(self.card)
        self.merger = PartMerger([part.tables for part in parts]) if len(parts) > 1 else None
        self.ids_recur = self.card.kind == "vllm" and self.card.plain_ids
        self.special = frozenset(self.card.special_ids)
        self.failure = ""
        self._requests: dict[str, BoundRequest] = {}
        self._pruned_from = _PRUNED_FROM

    @property
    def card(self) -> EngineCard:
        """Return the card of the first part."""
        return self.parts[0].card

    @property
    def id(self) -> str:
        """Return the id of the first part's card, which names the replica."""
        return self.card.id

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids of all cards."""
        return tuple(part.card.id for part in self.parts)

    @property
    def table(self) -> ProbeTable:
        """Return the probe table in force, as far as it is known, joined over all parts."""
        latest = [part.tables.latest for part in self.parts]
        return latest[0] if len(latest) == 1 else join_tables(latest)

    def find(self, span: Span, part: int) -> BoundRequest | None:
        """Return the request of a span from a part, or None if it is not bound to a log.

        Where ids recur, a span that says FIRST although the request has begun already is of another request: the end of the
        earlier one was overwritten in the ring before it was read.
        """
        found = self._requests.get(span.request)
        if found is not None and int.__and__(span.flags, _FIRST):
            if self.ids_recur and found.begun >> part & 1:
                self._drop(span.request, found)
                return None
            found.begun |= 1 << part
        return found

    def bind(self, span: Span, part: int, log: RequestLog, is_held: Callable[[RequestLog], bool]) -> BoundRequest:
        """Let a log take the rows of a span's request from now on.

        Args:
            span: The request's first span.
            part: Part that published it.
            log: Takes the rows.
            is_held: Whether a log is still in the store. Requests of others are dropped when there are many.
        """
        if len(self._requests) >= self._pruned_from:
            self._requests = {name: bound for name, bound in self._requests.items() if is_held(bound.log)}
            self._pruned_from = max(_PRUNED_FROM, 2 * len(self._requests))
        log.engine_id, log.replica = span.request, self.id
        found = self._requests[span.request] = BoundRequest(log, int(bool(span.flags & _FIRST)) << part)
        return found

    def end(self, span: Span, part: int, bound: BoundRequest) -> None:
        """Note that a part has ended a request. When all have, its id is free."""
        bound.ended |= 1 << part
        if bound.ended == (1 << len(self.parts)) - 1:
            self._requests.pop(span.request, None)

    def _drop(self, request: str, bound: BoundRequest) -> None:
        self._requests.pop(request, None)
        bound.log.end_rows(time.monotonic_ns(), aborted=True)

    def close(self, reason: str = "") -> None:
        """Stop reading. Logs keep what they have, and expect no more rows. Idempotent.

        Args:
            reason: Why the engine is gone. Logs of requests that went to it directly fail with it.
        """
        for part in self.parts:
            part.reader.close()
        requests, self._requests = self._requests, {}
        for bound in requests.values():
            if bound.log.source == "engine" and reason:
                bound.log.finish("failed", "error", reason)
            elif bound.log.running:
                bound.log.expect_no_rows()
