"""Log of one request (one choice): its tokens, scores and events, complete and bounded by the model's context.

Producers append and never wait. Readers hold a cursor and read what was appended after it. All of it runs on the event loop's
thread.
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
from actscope.frames import Span
from actscope.gateway.scores.columns import EventColumn, EventKind, ScoreColumn
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.match_counts import LogCounts
from actscope.gateway.scores.probe_table import NO_COLUMNS, Columns
from actscope.gateway.scores.token_times import TokenTimes

State = Literal["running", "done", "aborted", "failed"]
Source = Literal["gateway", "engine"]

_NEVER, _COMPUTED, _CACHED = b"\x00", b"\x01", b"\x02"

#: Number of rows that disagree with the answer's tokens from which on the rows are followed: a tool or reasoning parser of the
#: engine has left tokens out of its answer, and all later ones would be one position off.
_SHIFTED = 2

#: Most changes of the weights that a log names.
_MOST_CHANGES = 64

#: Id of a token that the gateway has not seen (of requests that went to the engine directly).
UNKNOWN_TOKEN = -1


@dataclass(slots=True)
class ParkedRows:
    """Rows that arrived before their tokens. Not frozen: that would take twice as long to make, for each token."""

    position: int
    ids: np.ndarray
    values: np.ndarray
    columns: Columns
    cached: bool

    def since(self, n: int) -> ParkedRows:
        """Return all rows but the first `n`."""
        return ParkedRows(self.position + n, self.ids[n:], self.values[n:], self.columns, self.cached)


class RequestLog:
    """Tokens, scores and events of one choice of one request.

    Its tokens come from one of two sources. Either from the engine's answer (`follows_rows` is False): rows wait for their tokens
    and must agree with them. Or from the rows themselves (`follows_rows` is True): the gateway has no stream of the tokens.

    Args:
        request: Unique id of the choice. Of a request that went to the engine directly: the engine's own id.
        response: Id of the response that the choice belongs to; empty: `request`.
        external: Id of the choice as clients see it, which several requests may share; empty: `request`.
        model: Name of the model.
        source: Who sent the request: the gateway, or another client to the engine directly.
        follows_rows: Whether the tokens come from the rows.
        began_ns: Start of the request on the monotonic clock; None: now.
        special: Ids of special tokens.
        texts: Texts of token ids; None: every token's text is unknown.
        first_columns: Columns of the first event, until the first token or row comes with others.
        counts: Counts over several logs; None: of this one.
    """

    def __init__(
        self,
        request: str,
        *,
        response: str = "",
        external: str = "",
        model: str = "",
        source: Source = "gateway",
        follows_rows: bool = False,
        began_ns: int | None = None,
        special: frozenset[int] = frozenset(),
        texts: TokenTexts | None = None,
        first_columns: Columns = NO_COLUMNS,
        counts: LogCounts | None = None,
    ) -> None:
        self.request = request
        self.response = response or request
        self.external = external or request
        self.model = model
        self.source = source
        self.engine_id = ""
        """Id of the request in the ring, empty before its first span. vLLM appends a suffix to the id that clients see."""
        self.replica = ""
        """Card id of the engine that runs the request, empty before its first span."""
        self.follows_rows = follows_rows
        self.began_ns = monotonic_ns() if began_ns is None else began_ns
        self.created = clock_pair().wall_of(self.began_ns) / 1e9
        self.ended_ns = 0
        self.special = special
        self.texts = texts or TokenTexts.unknown()
        self.state: State = "running"
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.weights = 0
        """Version of the weights of the last row: how often they had changed since the engine loaded them."""
        self.weights_since: list[tuple[int, int]] = []
        """Positions from which on rows have another version than 0 or than those before, and the version."""
        self.tokens = array("q")
        self.n_prompt: int | None = None
        self.scores = ScoreColumn()
        self.events = EventColumn()
        self.times = TokenTimes()
        """When its tokens were drawn, read, sent and drained."""
        self.first_columns = first_columns
        self.engine_ended = False
        self.on_finish: Callable[[RequestLog], object] | None = None
        """Called once, when the log has finished. It must return at once."""
        self._answered = False
        self._doubt = 0
        self._counts = counts or LogCounts()
        self._parked: deque[ParkedRows] = deque()
        self._waiters: list[asyncio.Future[None]] = []

    # --- tokens -----------------------------------------------------------------------------------------------------------

    def set_prompt(self, ids: Sequence[int]) -> None:
        """Append the prompt's tokens. Only the first call has an effect."""
        if self.n_prompt is None:
            self.n_prompt = len(ids)
            self._add_tokens(ids, monotonic_ns())

    def add_tokens(self, ids: Sequence[int]) -> None:
        """Append generated tokens."""
        if ids:
            self._add_tokens(ids, monotonic_ns())

    def follow_rows(self) -> None:
        """Take the tokens from the rows from now on, also those of parked rows: the answer does not contain them. Idempotent."""
        if self.follows_rows:
            return
        self.follows_rows = True
        parked, self._parked = self._parked, deque()
        for rows in parked:
            self.take_rows(rows.position, rows.ids, rows.values, rows.columns, monotonic_ns(), rows.cached)

    def settle(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Reconcile with the final answer of a request that followed its rows. Drop scores whose token id differs."""
        self._answered = True
        truth = [*prompt, *generated]
        wrong = [i for i, (a, b) in enumerate(zip(self.tokens, truth, strict=False)) if a != b and a != UNKNOWN_TOKEN]
        for i in wrong:
            self.scores.forget(i)
        self.tokens[:] = array("q", truth[: len(self.tokens)])
        self.n_prompt = len(prompt)
        self.count_mismatches(len(wrong))
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

    # --- rows -------------------------------------------------------------------------------------------------------------

    def see_span(self, span: Span) -> None:
        """Take the length of the prompt if this log follows its rows."""
        if self.n_prompt is None and self.follows_rows and span.n_prompt:
            self.n_prompt = span.n_prompt

    def see_weights(self, position: int, version: int) -> None:
        """Note that the rows from a position on were computed under another version of the model's weights."""
        self.weights = version
        if len(self.weights_since) < _MOST_CHANGES:
            self.weights_since.append((position, version))

    def take_rows(
        self, position: int, ids: np.ndarray, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        """Append rows of consecutive positions. Positions received before are skipped; rows without a token yet are parked.

        Args:
            position: Position of the first row.
            ids: Token ids, int [n].
            values: Scores, float32 [n, columns.width].
            columns: Meaning of the scores.
            now_ns: Time of the rows on the monotonic clock.
            cached: Whether they were computed for an earlier request with the same prefix.
        """
        again = self._n_received - position
        if again > 0:
            position, ids, values = position + again, ids[again:], values[again:]
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
        """Append one row: values [1, columns.width]. Faster than `take_rows` when its token is known and agrees."""
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
        """Return the position after the last row received, parked or not."""
        last = self._parked[-1] if self._parked else None
        return len(self.scores) if last is None else last.position + len(last.ids)

    def _unpark(self) -> None:
        """Append the parked rows whose tokens have arrived. They are in order: the first row without a token ends the search."""
        while self._parked and self._parked[0].position < len(self.tokens):
            rows = self._parked.popleft()
            known = len(self.tokens) - rows.position
            if known < len(rows.ids):
                self._parked.appendleft(rows.since(known))
            self._take(rows.position, rows.ids[:known], rows.values[:known], rows.columns, rows.cached)

    def _take(self, position: int, ids: np.ndarray, values: np.ndarray, columns: Columns, cached: bool) -> None:
        """Append rows whose tokens are known. Positions before them without a row will never have one."""
        start = len(self.scores)
        if position > start:
            self.scores.append_missing(columns, position - start)
        if len(ids) == 1:  # the usual case, without making arrays
            state = (_CACHED if cached else _COMPUTED) if ids[0] == self.tokens[position] else _NEVER
            wrong = int(state == _NEVER)
        else:
            agree = ids == np.array(self.tokens[position : position + len(ids)])
            wrong = len(ids) - int(np.count_nonzero(agree))
            state = agree.tobytes().replace(_COMPUTED, _CACHED) if cached else agree.tobytes()
        self.scores.append(columns, values, state)
        self.events.append(EventKind.PROBE_UPDATE, start, len(self.scores))
        self._notify()
        if wrong:
            self.count_mismatches(wrong)
            self._doubt += wrong
            if self._doubt >= _SHIFTED:
                self.follow_rows()

    def count_mismatches(self, rows: int) -> None:
        """Count rows of this request whose token id differs from the token at their position."""
        if rows:
            self._counts.add_mismatches(self.request, rows)

    def end_rows(self, now_ns: int, *, aborted: bool = False) -> None:
        """Record that the engine has ended the request: no more rows come. A log with source "engine" finishes."""
        self.engine_ended = True
        self._notify()
        if self.source == "engine":
            self.finish("aborted" if aborted else "done", "abort" if aborted else None)

    def expect_no_rows(self) -> None:
        """Record that no more rows come, although the engine may not have ended the request: its ring is not read any more."""
        self.engine_ended = True
        self._notify()

    @property
    def owes_rows(self) -> bool:
        """Return whether rows are still expected.

        They are, until the engine ends the request, for every token but the last one. While the tokens come from the rows and the
        answer is not known, only the END span says that no more rows come.
        """
        only_rows = self.follows_rows and not self._answered
        return not self.engine_ended and (only_rows or len(self.scores) < len(self.tokens) - 1)

    # --- end --------------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Return whether the request has not finished."""
        return self.state == "running"

    def finish(self, state: State, reason: str | None, error: str | None = None) -> None:
        """End the log: positions without a row become never computed. Only the first call has an effect."""
        if self.state != "running":
            return
        self._counts.add_ended(state, error, owes_rows=self.owes_rows)
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
        if self.on_finish is not None:
            self.on_finish(self)

    @property
    def columns(self) -> Columns:
        """Return the columns of the latest row; before the first row, `first_columns`."""
        return self.scores.segments[-1].columns if self.scores.segments else self.first_columns

    @property
    def present(self) -> int:
        """Return the number of positions."""
        return len(self.tokens)

    @property
    def completion_tokens(self) -> int:
        """Return the number of generated tokens."""
        return max(len(self.tokens) - (self.n_prompt or 0), 0)

    # --- readers ----------------------------------------------------------------------------------------------------------

    async def changed(self) -> None:
        """Wait until the log changes after this call."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                self._waiters = [w for w in self._waiters if w is not waiter]

    def _notify(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
