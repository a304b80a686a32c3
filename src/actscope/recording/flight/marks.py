"""Marks: what is asked for, and what has become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actscope.recording.flight.request_rows import Range
from actscope.recording.flight.windows import TokensOrTime

MarkState = Literal["keeping", "kept", "pending", "forgotten", "unknown"]


@dataclass(frozen=True, slots=True)
class MarkResult:
    """What has become of a mark.

    `keeping`: the request runs, and its future rows will be kept too; `kept`: it had ended; `pending`: it is waited for;
    `forgotten`: it was known, and nothing of it is left; `unknown`: nothing is known of it. `rows`: positions of the
    request that the recording has or is about to get, by this mark and others. `forgotten` and `dropped`: ranges `(first,
    after)` of positions that this mark wants and that are gone: they had left the flight recorder, or never came into it.
    """

    request: str
    state: MarkState
    running: bool = False
    rows: int = 0
    forgotten: tuple[Range, ...] = ()
    dropped: tuple[Range, ...] = ()

    @property
    def missing(self) -> int:
        """How many positions are gone."""
        return sum(after - first for first, after in (*self.forgotten, *self.dropped))


@dataclass(frozen=True, slots=True)
class MarkRequest:
    """A mark as it is asked for. `until_ns`: how long it waits for a request that has not begun, 0 for not at all."""

    why: str
    before: TokensOrTime | None
    after: TokensOrTime | None
    until_ns: int = 0
