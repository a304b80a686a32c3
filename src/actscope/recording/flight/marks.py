"""Marks: the request to keep a request's rows, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actscope.recording.flight.request_rows import Range
from actscope.recording.flight.windows import TokensOrTime

MarkState = Literal["keeping", "kept", "pending", "forgotten", "unknown"]


@dataclass(frozen=True, slots=True)
class MarkResult:
    """Result of a mark.

    State:

    - `keeping`: the request is running; its future rows are kept as well.
    - `kept`: the request has ended.
    - `pending`: the request has not begun; the mark waits for it.
    - `forgotten`: the request is known, but all of its rows were lost.
    - `unknown`: the request is not known.

    `rows` counts the request's rows that were queued for the recording, by this mark and all others. `forgotten` and `dropped`
    are half-open position ranges `(first, after)` that the mark covers and that are lost: evicted from the flight recorder, or
    never received by it.
    """

    request: str
    state: MarkState
    running: bool = False
    rows: int = 0
    forgotten: tuple[Range, ...] = ()
    dropped: tuple[Range, ...] = ()

    @property
    def missing(self) -> int:
        """Return the number of lost positions."""
        return sum(after - first for first, after in (*self.forgotten, *self.dropped))


@dataclass(frozen=True, slots=True)
class MarkRequest:
    """Reason and extent of a mark. `until_ns` is the time until which it waits for a request to begin; 0: no waiting."""

    why: str
    before: TokensOrTime | None
    after: TokensOrTime | None
    until_ns: int = 0
