"""Held rows, by request and by step. A `HeldSpan` is the rows of one request in one step; it belongs to one of each."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actscope.errors import RecordingError
from actscope.frames import Frame, Span, SpanFlag, Step
from actscope.recording.flight.marks import MarkRequest, MarkResult, MarkState
from actscope.recording.flight.spool import Run, Spool
from actscope.recording.flight.windows import KeepWindow, Range, Windows
from actscope.recording.format.arrays import as_numpy

#: Bytes charged for each step and each span beside its rows and labels.
_STEP_BYTES, _SPAN_BYTES = 640, 160
#: Maximum number of reasons recorded for a request. Further marks only widen what is kept.
_MAX_REASONS = 64


@dataclass(slots=True, eq=False)
class HeldStep:
    """A step whose rows are held.

    Attributes:
        step: The step, with its labels.
        sites: (name, dtype) of each site, in the order of the ticket's arrays.
        ticket: Address of the rows in the spool.
        size: Bytes charged against the bound of the history.
        spans: The step's spans with rows.
    """

    step: Step
    sites: list[tuple[str, str]] = field(default_factory=list)
    ticket: Any = None
    size: int = 0
    spans: list[HeldSpan] = field(default_factory=list)

    @classmethod
    def of(cls, step: Step, frames: Sequence[Frame]) -> tuple[HeldStep, list[np.ndarray]]:
        """Return the step, not yet stored, and its rows as arrays [n, d].

        Raises:
            RecordingError: A frame's rows are not [step.n_rows, d].
        """
        held, arrays = cls(step), []
        for frame in frames:
            array, dtype = as_numpy(frame.rows, frame.dtype)
            if len(array) != step.n_rows:
                raise RecordingError(f"{frame.site}: expected rows [{step.n_rows}, d], found {list(array.shape)}")
            held.sites.append((frame.site, dtype))
            arrays.append(array)
        held.size = step.meta.nbytes + sum(a.nbytes for a in arrays) + _STEP_BYTES + _SPAN_BYTES * len(step.spans)
        return held, arrays

    def store(self, spool: Spool, arrays: list[np.ndarray]) -> None:
        """Put the rows into the spool. Raises OSError if it cannot store them."""
        self.ticket = spool.put(arrays)

    def discard(self, spool: Spool) -> None:
        """Remove the rows from the spool."""
        spool.drop(self.ticket)

    def frames(self, spool: Spool, runs: Sequence[Run]) -> list[Frame]:
        """Read the rows of these runs from the spool: one frame for each site."""
        return [Frame(site, spool.rows(self.ticket, i, runs), dtype) for i, (site, dtype) in enumerate(self.sites)]

    def give(self) -> list[Piece]:
        """Return the pieces of this new step that marks keep, and count them as given."""
        pieces: list[Piece] = []
        for held in self.spans:
            if held.owner.windows is not None:  # no call in the usual case, a request without a mark
                pieces += held.owner.give_new(held)
        return pieces


@dataclass(slots=True, eq=False)
class HeldSpan:
    """A span of a held step. `given` (bool [n_rows], None: none) marks the rows that were queued for the recording."""

    owner: RequestRows
    span: Span
    held_step: HeldStep
    given: np.ndarray | None = None

    def give(self, windows: Windows) -> list[Piece]:
        """Return the pieces that the windows cover and that were not given before. Mark them as given.

        A span without rows is given once, as one empty piece: it carries the END flag.
        """
        wanted = windows.chosen(self.span.first_position, self.span.n_rows, self.held_step.step.time_ns)
        if self.given is None:
            self.given = wanted
            runs = [(0, len(wanted))] if wanted.all() else runs_of(wanted)
        else:
            runs = runs_of(wanted & ~self.given)
            self.given |= wanted
        return [(self, run) for run in runs]

    def not_given(self) -> list[Run]:
        """Return the runs of rows that were not given."""
        return [(0, self.span.n_rows)] if self.given is None else runs_of(~self.given)


#: A run of rows of one held span.
Piece = tuple[HeldSpan, Run]


@dataclass(frozen=True, slots=True)
class Kept:
    """Effect of a mark or of a firing on a request.

    Attributes:
        request: Request id.
        pieces: Held rows to write back, a list for each held span.
        first: Whether the request was not marked before.
        why: Reason to record; None if it is known already.
    """

    request: str
    pieces: list[list[Piece]]
    first: bool
    why: str | None


@dataclass(slots=True, eq=False)
class RequestRows:
    """A request from its first span on: held spans, lost rows, and the windows of rows to keep.

    Attributes:
        request: Request id.
        number: Requests are numbered in the order in which they begin.
        spans: Held spans, oldest first.
        end: The END span, which has no rows; None while the request is running.
        position: Position of the latest row, -1 before the first one.
        time_ns: Time of the latest row.
        in_order: Whether positions have only increased.
        windows: Rows to keep; None until the first mark.
        reasons: Reasons of the marks, each once.
        rows_given: Number of rows that were queued for the recording.
        forgotten: Rows that were evicted before they were given.
        dropped: Rows that the flight recorder did not receive or could not store.
    """

    request: str
    number: int
    spans: deque[HeldSpan] = field(default_factory=deque)
    end: HeldSpan | None = None
    position: int = -1
    time_ns: int = 0
    in_order: bool = True
    windows: Windows | None = None
    reasons: list[str] = field(default_factory=list)
    rows_given: int = 0
    forgotten: Lost = field(default_factory=lambda: Lost())
    dropped: Lost = field(default_factory=lambda: Lost())

    @property
    def running(self) -> bool:
        """Return whether the request has not ended."""
        return self.end is None

    @property
    def over(self) -> bool:
        """Return whether the request has ended and none of its rows are held."""
        return self.end is not None and not self.spans

    # --- arrive, hold, end ------------------------------------------------------------------------------------------------

    def hold(self, span: Span, held_step: HeldStep) -> None:
        """Add a span of a held step."""
        self._see(span, held_step.step.time_ns)
        held = HeldSpan(self, span, held_step)
        self.spans.append(held)
        held_step.spans.append(held)

    def lose(self, span: Span, time_ns: int) -> None:
        """Count a span as dropped: its rows cannot be held."""
        self._see(span, time_ns)
        self.dropped.add(span.first_position, span.n_rows, time_ns)

    def _see(self, span: Span, time_ns: int) -> None:
        """Update the position and the lost ranges from a span that was computed at `time_ns`."""
        if span.first_position <= self.position:  # recomputed after preemption: these positions are no longer lost
            self.in_order = False
            self.forgotten.found(span.first_position, span.n_rows)
            self.dropped.found(span.first_position, span.n_rows)
        elif span.first_position > self.position + 1 and (self.position >= 0 or SpanFlag.FIRST not in span.flags):
            # steps whose labels were dropped too, or that came before this flight recorder began
            self.dropped.add(self.position + 1, span.first_position - self.position - 1, time_ns)
        self.position = max(self.position, span.first_position + span.n_rows - 1)
        self.time_ns = time_ns

    def finish(self, step: Step, span: Span) -> list[Piece]:
        """End the request at this span of this step. Return the END span if a mark keeps the request, and mark it as given."""
        end = Span(span.request, span.first_position + span.n_rows, 0, 0, span.flags & ~SpanFlag.FIRST, span.n_prompt)
        closing = Step(step.number, step.time_ns, (end,), np.empty(0, step.meta.dtype), step.generation)
        self.end = HeldSpan(self, end, HeldStep(closing))
        return self._give(self.end) if self.windows is not None else []

    # --- mark, write back -------------------------------------------------------------------------------------------------

    def mark(self, mark_request: MarkRequest, now_ns: int) -> tuple[Kept, MarkResult]:
        """Apply a mark. Its window is counted from the latest row, or from `now_ns` before the first row."""
        window = KeepWindow.around(self.position, self.time_ns or now_ns, mark_request.before, mark_request.after)
        kept = self.keep([window], mark_request.why)
        return kept, self._result(window)

    def keep(self, windows: Iterable[KeepWindow], why: str | None) -> Kept:
        """Keep these windows: give their held rows now, and their later rows as they arrive (`HeldStep.give`).

        Each reason is recorded once. None records no reason.
        """
        first = self.windows is None
        if self.windows is None:
            self.windows = Windows()
        pieces = [self._give(held) for window in windows if self.windows.add(window) for held in self._within(window)]
        if why is not None and (why in self.reasons or len(self.reasons) >= _MAX_REASONS):
            why = None
        if why is not None:
            self.reasons.append(why)
        return Kept(self.request, pieces, first, why)

    def _within(self, window: KeepWindow) -> list[HeldSpan]:
        """Return the held spans, oldest first, that may have rows inside the window, and the END span."""
        found: list[HeldSpan] = [] if self.end is None else [self.end]
        for held in reversed(self.spans):
            too_old = held.held_step.step.time_ns < window.first_ns
            if too_old or (self.in_order and held.span.first_position + held.span.n_rows <= window.first):
                break
            found.append(held)
        return found[::-1]

    def _result(self, window: KeepWindow) -> MarkResult:
        forgotten, dropped = tuple(self.forgotten.within(window)), tuple(self.dropped.within(window))
        state: MarkState = "keeping" if self.running else "kept"
        if not self.running and not self.rows_given and (forgotten or dropped):
            state = "forgotten"
        return MarkResult(self.request, state, self.running, self.rows_given, forgotten, dropped)

    def result(self) -> MarkResult:
        """Return what a marked request has come to: its rows, and the lost positions that its marks cover."""
        windows = list(self.windows) if self.windows is not None else []
        forgotten, dropped = (_union(lost.within(w) for w in windows) for lost in (self.forgotten, self.dropped))
        state: MarkState = (
            "keeping" if self.running else "kept" if self.rows_given or not (forgotten or dropped) else "forgotten"
        )
        return MarkResult(self.request, state, self.running, self.rows_given, forgotten, dropped)

    def unwritten(self, held: HeldSpan, start: int, stop: int) -> None:
        """Note that given rows could not be written after all."""
        self.rows_given -= stop - start
        self.dropped.add(held.span.first_position + start, stop - start, held.held_step.step.time_ns)

    def give_new(self, held: HeldSpan) -> list[Piece]:
        """Return the pieces of a new span that the windows cover, and mark them as given. Discard windows that are past."""
        assert self.windows is not None
        self.windows.end_before(held.held_step.step.time_ns)
        return self._give(held)

    def _give(self, held: HeldSpan) -> list[Piece]:
        assert self.windows is not None
        pieces = held.give(self.windows)
        self.rows_given += sum(stop - start for _, (start, stop) in pieces)
        return pieces

    # --- expire -----------------------------------------------------------------------------------------------------------

    def evict(self, held: HeldSpan) -> None:
        """Remove the oldest held span. Its rows that were not given count as forgotten."""
        assert self.spans.popleft() is held
        for start, stop in held.not_given():
            self.forgotten.add(held.span.first_position + start, stop - start, held.held_step.step.time_ns)

    def tombstone(self) -> Tombstone:
        """Return the summary that is kept after the request is over."""
        forgotten, dropped = (tuple(lost.within(KeepWindow())) for lost in (self.forgotten, self.dropped))
        return Tombstone(self.request, self.rows_given, forgotten, dropped, marked=self.windows is not None)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Summary of a finished request whose rows were evicted: number of rows given, lost positions, and whether it was marked."""

    request: str
    rows_given: int
    forgotten: tuple[Range, ...]
    dropped: tuple[Range, ...]
    marked: bool = False

    def result(self) -> MarkResult:
        """Return the result of a mark, which can keep no further rows."""
        state: MarkState = "kept" if self.rows_given else "forgotten"
        return MarkResult(self.request, state, False, self.rows_given, self.forgotten, self.dropped)


class Lost:
    """Lost rows: exact position ranges and times, 24 bytes for each range of one step."""

    def __init__(self) -> None:
        self._first, self._after, self._time_ns = array("q"), array("q"), array("q")

    def add(self, first: int, n_rows: int, time_ns: int) -> None:
        """Add the positions `first .. first + n_rows` of a step at `time_ns`."""
        self._first.append(first)
        self._after.append(first + n_rows)
        self._time_ns.append(time_ns)

    @property
    def _columns(self) -> tuple[array[int], array[int], array[int]]:
        return self._first, self._after, self._time_ns

    def found(self, first: int, n_rows: int) -> None:
        """Remove these positions: they were computed again."""
        kept = [
            (low, high, time_ns)
            for a, b, time_ns in zip(*self._columns, strict=True)
            for low, high in ((a, min(b, first)), (max(a, first + n_rows), b))
            if low < high
        ]
        self._first, self._after, self._time_ns = (array("q", column) for column in zip(*kept, strict=True)) if kept else (
            array("q"), array("q"), array("q"))  # fmt: skip

    def within(self, window: KeepWindow) -> list[Range]:
        """Return the lost positions inside a window as ascending, disjoint ranges."""
        return list(_union([self._cut(window)]))

    def _cut(self, window: KeepWindow) -> Iterator[Range]:
        for first, after, time_ns in zip(*self._columns, strict=True):
            start, stop = window.cut(first, after - first, time_ns)
            if start < stop:
                yield first + start, first + stop


def _union(parts: Iterable[Iterable[Range]]) -> tuple[Range, ...]:
    """Return the ranges of all parts as ascending, disjoint ranges."""
    merged: list[Range] = []
    for first, after in sorted(one for part in parts for one in part):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(after, merged[-1][1])
        else:
            merged.append((first, after))
    return tuple(merged)


def runs_of(chosen: np.ndarray) -> list[Run]:
    """Return the runs `(start, stop)` of True in a bool array [n]."""
    if len(chosen) == 1:
        return [(0, 1)] if chosen[0] else []
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
