"""The log of one request (one choice): its tokens, scores and events, complete and bounded by the model's context.

Producers append and never wait; readers hold a cursor and read what they have not seen. Everything here runs
on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actscope.clock import clock_pair, monotonic_ns
from actscope.gateway.scores.columns import EventColumn, EventKind, ScoreColumn
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.probe_table import NO_COLUMNS, Columns

State = Literal["running", "done", "aborted", "failed"]
Source = Literal["gateway", "engine"]

_COMPUTED, _CACHED = b"\x01", b"\x02"

#: Id of a token that the gateway has not seen (requests that went to the engine directly).
UNKNOWN_TOKEN = -1


@dataclass(frozen=True, slots=True)
class ParkedRows:
    """Rows that came before their tokens."""

    position: int
    ids: np.ndarray
    values: np.ndarray
    columns: Columns
    cached: bool

    def since(self, n: int) -> ParkedRows:
        """All but the first `n`."""
        return ParkedRows(self.position + n, self.ids[n:], self.values[n:], self.columns, self.cached)


class RequestLog:
    """What is known of one choice of one request.

    Two authorities for its tokens: the engine's answer (`follows_rows` false; rows wait for their token and must
    agree with it), or the rows themselves (a request that the gateway has no token stream of).
    """

    def __init__(
        self,
        request: str,
        *,
        response: str = "",
        model: str = "",
        source: Source = "gateway",
        follows_rows: bool = False,
        began_ns: int | None = None,
        special: frozenset[int] = frozenset(),
        texts: TokenTexts | None = None,
        on_mismatch: Callable[[RequestLog, int], None] | None = None,
    ) -> None:
        self.request = request
        self.response = response or request
        self.model = model
        self.source = source
        self.engine_id = ""
        """The request's id in the ring, once a row has come: vLLM adds to the one that its clients see."""
        self.follows_rows = follows_rows
        self.began_ns = monotonic_ns() if began_ns is None else began_ns
        self.created = clock_pair().wall_of(self.began_ns) / 1e9
        self.ended_ns = 0
        self.special = special
        self.texts = texts or TokenTexts.unknown()
        self.state: State = "running"
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.tokens = array("q")
        self.n_prompt: int | None = None
        self.scores = ScoreColumn()
        self.events = EventColumn()
        self.first_columns = NO_COLUMNS
        self.engine_ended = False
        self._answered = False
        self._on_mismatch = on_mismatch
        self._parked: deque[ParkedRows] = deque()
        self._waiters: list[asyncio.Future[None]] = []

    # Tokens

    def set_prompt(self, ids: Sequence[int]) -> None:
        """The prompt's tokens are known; a second time changes nothing."""
        if self.n_prompt is None:
            self.n_prompt = len(ids)
            self._add_tokens(ids, monotonic_ns())

    def add_tokens(self, ids: Sequence[int]) -> None:
        """Tokens have been generated."""
        if ids:
            self._add_tokens(ids, monotonic_ns())

    def follow_rows(self) -> None:
        """The answer does not tell its tokens: they are the rows' from here on, of those that wait too."""
        if self.follows_rows:
            return
        self.follows_rows = True
        parked, self._parked = self._parked, deque()
        for rows in parked:
            self.take_rows(rows.position, rows.ids, rows.values, rows.columns, monotonic_ns(), rows.cached)

    def settle(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """The whole answer of a request that followed its rows: rows that had another token lose their scores."""
        self._answered = True
        truth = [*prompt, *generated]
        wrong = [i for i, (a, b) in enumerate(zip(self.tokens, truth, strict=False)) if a != b and a != UNKNOWN_TOKEN]
        for i in wrong:
            self.scores.forget(i)
        self.tokens[:] = array("q", truth[: len(self.tokens)])
        self.n_prompt = len(prompt)
        self._report(len(wrong))
        if len(truth) > len(self.tokens):
            self._add_tokens(truth[len(self.tokens) :], monotonic_ns())

    def _add_tokens(self, ids: Sequence[int], now_ns: int) -> None:
        start = len(self.tokens)
        if start == 0 and self._parked:
            self.first_columns = self._parked[0].columns
        self.tokens.extend(ids)
        self.events.append(EventKind.TOKEN, start, len(self.tokens), (now_ns - self.began_ns) / 1e9)
        if self._parked:
            self._unpark()
        self._notify()

    # Rows

    def take_rows(
        self, position: int, ids: np.ndarray, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        """Rows of positions `position ..`, with their token ids. Positions that came before are skipped.

        `cached`: they were computed for an earlier request with the same beginning.
        """
        told = self._n_received - position
        if told > 0:
            position, ids, values = position + told, ids[told:], values[told:]
        if not len(ids):
            return
        if self.follows_rows:
            self._adopt_tokens(position, ids, columns, now_ns)
        known = len(self.tokens) - position
        if known < len(ids):
            known = max(known, 0)
            self._parked.append(ParkedRows(position + known, ids[known:], values[known:], columns, cached))
        if known > 0:
            self._take(position, ids[:known], values[:known], columns, cached)

    def take_row(
        self, position: int, token_id: int, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        """One row. The next one due, of a token that is known and the same, needs no arrays."""
        due = position == len(self.scores) and position < len(self.tokens) and self.tokens[position] == token_id
        if not due:
            self.take_rows(position, np.array([token_id]), values, columns, now_ns, cached)
            return
        self.scores.append(columns, values, _CACHED if cached else _COMPUTED)
        self.events.append(EventKind.PROBE_UPDATE, position, position + 1)
        self._notify()

    def _adopt_tokens(self, position: int, ids: np.ndarray, columns: Columns, now_ns: int) -> None:
        fresh = ids[max(len(self.tokens) - position, 0) :].tolist()
        hole = [UNKNOWN_TOKEN] * max(position - len(self.tokens), 0)
        if not self.tokens:
            self.first_columns = columns
        if fresh:
            self._add_tokens(hole + fresh, now_ns)

    @property
    def _n_received(self) -> int:
        last = self._parked[-1] if self._parked else None
        return len(self.scores) if last is None else last.position + len(last.ids)

    def _unpark(self) -> None:
        """Take the parked rows whose tokens have come; they are in order, so the rest is not looked at."""
        while self._parked and self._parked[0].position < len(self.tokens):
            rows = self._parked.popleft()
            known = len(self.tokens) - rows.position
            if known < len(rows.ids):
                self._parked.appendleft(rows.since(known))
            self._take(rows.position, rows.ids[:known], rows.values[:known], rows.columns, rows.cached)

    def _take(self, position: int, ids: np.ndarray, values: np.ndarray, columns: Columns, cached: bool) -> None:
        """Append rows whose tokens are known; what lies before them and has not come will not come."""
        start = len(self.scores)
        if position > start:
            self.scores.append_missing(columns, position - start)
        agree = ids == np.array(self.tokens[position : position + len(ids)])
        self._report(len(ids) - int(np.count_nonzero(agree)))
        self.scores.append(columns, values, agree.tobytes().replace(_COMPUTED, _CACHED) if cached else agree.tobytes())
        self.events.append(EventKind.PROBE_UPDATE, start, len(self.scores))
        self._notify()

    def _report(self, mismatched: int) -> None:
        if mismatched and self._on_mismatch is not None:
            self._on_mismatch(self, mismatched)

    @property
    def owes_rows(self) -> bool:
        """Whether rows may still come: all but the last token's are expected until the engine says END.

        Where only the rows tell the tokens, nothing but END does.
        """
        told_by_rows = self.follows_rows and not self._answered
        return not self.engine_ended and (told_by_rows or len(self.scores) < len(self.tokens) - 1)

    # The end

    def finish(self, state: State, reason: str | None, error: str | None = None) -> None:
        """The request has ended; positions without a row will never have one. A second call changes nothing."""
        if self.state != "running":
            return
        self.state, self.finish_reason, self.error = state, reason, error
        self.ended_ns = monotonic_ns()
        self._parked.clear()
        missing = len(self.tokens) - len(self.scores)
        if missing > 0:
            start = len(self.scores)
            self.scores.append_missing(self.columns, missing)
            self.events.append(EventKind.PROBE_UPDATE, start, start + missing)
        self.events.append(EventKind.PROBE_FINAL)
        self.events.append(EventKind.DONE)
        self._notify()

    @property
    def columns(self) -> Columns:
        """Those of the latest row."""
        return self.scores.segments[-1].columns if self.scores.segments else self.first_columns

    @property
    def present(self) -> int:
        return len(self.tokens)

    @property
    def computed(self) -> int:
        return self.scores.n_computed

    @property
    def cached(self) -> int:
        """How many of the computed positions were computed for an earlier request."""
        return self.scores.n_cached

    @property
    def completion_tokens(self) -> int:
        return max(len(self.tokens) - (self.n_prompt or 0), 0)

    # Readers

    async def changed(self) -> None:
        """Return when something has been appended since this call."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                self._waiters = [w for w in self._waiters if w is not waiter]

    def note_engine_end(self) -> None:
        """The ring said that the engine is through with this request."""
        self.engine_ended = True
        self._notify()

    def _notify(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
