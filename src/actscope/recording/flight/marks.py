"""Marks: the order to keep a request's rows, its result, and the marks that wait for a request to begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from actscope.errors import RecordingError
from actscope.recording.flight.windows import Range, TokensOrTime

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
    """Reason and extent of a mark.

    `until_ns` is the time until which it waits for a request to begin; 0: no waiting. `runs` says that the request runs already,
    so that its mark is lost if it ends without a row; `earlier`, that an earlier writer has written rows of it.
    """

    why: str
    before: TokensOrTime | None = None
    after: TokensOrTime | None = None
    until_ns: int = 0
    runs: bool = False
    earlier: bool = False


@dataclass(slots=True)
class Outcomes:
    """What became of marked requests that have ended. Each is counted once, when its rows are in the file or lost.

    Attributes:
        whole: Requests of which every row that a mark covers is in the recording.
        incomplete: Requests of which some rows are in the recording and others are lost.
        lost: Requests of which no row is in the recording.
        missed_ends: Requests whose end did not arrive, and that were ended because the engine does not run them any more.
    """

    whole: int = 0
    incomplete: int = 0
    lost: int = 0
    missed_ends: int = 0

    def count(self, result: MarkResult, *, earlier: bool = False) -> str:
        """Count a request, and return which of the first three it is. `earlier`: an earlier writer has written rows of it."""
        if not result.rows and not earlier:
            self.lost += 1
            return "lost"
        if result.missing or not result.rows:
            self.incomplete += 1
            return "incomplete"
        self.whole += 1
        return "whole"


class MarkWatch(Protocol):
    """Learns what becomes of marked requests, on the flight recorder's thread. Its methods must not raise."""

    def marked(self, request: str, why: str) -> None:
        """Note a request's first mark, before any of its rows is written."""

    def settled(self, result: MarkResult, outcomes: Outcomes) -> None:
        """Note that a marked request has ended, and that its rows are in the file or lost. It is counted in `outcomes`."""


class PendingMarks:
    """Marks for requests that have not begun, at most `limit`. A second mark of a request replaces the first one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._marks: dict[str, MarkRequest] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def wait(self, request: str, mark_request: MarkRequest, now_ns: int) -> None:
        """Add a mark, after expiring those that waited until before `now_ns`.

        Raises:
            RecordingError: `limit` marks of other requests wait already.
        """
        for name in [name for name, other in self._marks.items() if other.until_ns < now_ns]:
            del self._marks[name]
        if len(self._marks) >= self._limit and request not in self._marks:
            raise RecordingError(f"{self._limit} marks wait for requests already; try again when some have begun")
        self._marks[request] = mark_request

    def take(self, request: str, time_ns: int) -> MarkRequest | None:
        """Remove the mark of a request that began at `time_ns`, and return it. None if there is none, or if it has expired."""
        found = self._marks.pop(request, None)
        return found if found is not None and found.until_ns >= time_ns else None

    def running(self) -> list[str]:
        """Return the requests with a mark that run already (see `MarkRequest.runs`)."""
        return [request for request, mark_request in self._marks.items() if mark_request.runs]
