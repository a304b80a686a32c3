"""Rows of one request in the flight recorder: one `HeldSpan` for each step that computed some of them."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actscope.frames import Span, Step
from actscope.recording.flight.spool import Run
from actscope.recording.flight.windows import KeepWindow, Windows

#: Half-open range of positions `(first, after)` of a request.
Range = tuple[int, int]


@dataclass(slots=True, eq=False)
class KeptStep:
    """A step whose rows are held. `sites` are (name, dtype), in the order of the ticket's arrays."""

    step: Step
    sites: list[tuple[str, str]] = field(default_factory=list)
    ticket: Any = None
    size: int = 0
    legs: list[HeldSpan] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class HeldSpan:
    """A span of a held step. `given` (bool [n_rows], None: none) marks the rows that were queued for the recording."""

    trail: RequestRows
    span: Span
    kept: KeptStep
    given: np.ndarray | None = None

    def choose(self, windows: Windows) -> list[Run]:
        """Return the rows that the windows cover and that were not given before, and mark them as given."""
        wanted = windows.chosen(self.span.first_position, self.span.n_rows, self.kept.step.time_ns)
        if self.given is None:
            self.given = wanted
            return runs_of(wanted) if not wanted.all() else [(0, len(wanted))]
        fresh = wanted & ~self.given
        self.given |= wanted
        return runs_of(fresh)


@dataclass(slots=True, eq=False)
class RequestRows:
    """A request from its first span on: held spans, lost rows, and the windows of rows to keep."""

    request: str
    number: int  # requests are numbered in the order in which they begin
    legs: deque[HeldSpan] = field(default_factory=deque)
    end: HeldSpan | None = None
    position: int = -1  # of its last row
    time_ns: int = 0  # of its last row
    in_order: bool = True  # positions have only increased
    windows: Windows | None = None
    reasons: list[str] = field(default_factory=list)
    rows_given: int = 0
    forgotten: Lost = field(default_factory=lambda: Lost())
    dropped: Lost = field(default_factory=lambda: Lost())

    @property
    def running(self) -> bool:
        """Return whether the request has not ended."""
        return self.end is None

    def saw(self, span: Span, time_ns: int) -> None:
        """Update the position and the lost ranges from a span that was computed at `time_ns`."""
        if span.first_position <= self.position:  # recomputed after preemption: these positions are no longer lost
            self.in_order = False
            self.forgotten.found(span.first_position, span.n_rows)
            self.dropped.found(span.first_position, span.n_rows)
        elif span.first_position > self.position + 1 and self.position >= 0:  # steps whose labels were dropped too
            self.dropped.add(self.position + 1, span.first_position - self.position - 1, time_ns)
        self.position = max(self.position, span.first_position + span.n_rows - 1)
        self.time_ns = time_ns

    def legs_within(self, window: KeepWindow) -> list[HeldSpan]:
        """Return the held spans, oldest first, that may have rows inside the window."""
        found: list[HeldSpan] = []
        for held in reversed(self.legs):
            too_old = held.kept.step.time_ns < window.first_ns
            if too_old or (self.in_order and held.span.first_position + held.span.n_rows <= window.first):
                break
            found.append(held)
        return found[::-1]

    def forget(self, held: HeldSpan) -> None:
        """Remove the oldest held span. Its rows that were not given count as forgotten."""
        assert self.legs.popleft() is held
        gone = [(0, held.span.n_rows)] if held.given is None else runs_of(~held.given)
        for start, stop in gone:
            self.forgotten.add(held.span.first_position + start, stop - start, held.kept.step.time_ns)


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
        merged: list[Range] = []
        for first, after in sorted(self._cut(window)):
            if merged and first <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(after, merged[-1][1])
            else:
                merged.append((first, after))
        return merged

    def _cut(self, window: KeepWindow) -> Iterator[Range]:
        for first, after, time_ns in zip(*self._columns, strict=True):
            start, stop = window.cut(first, after - first, time_ns)
            if start < stop:
                yield first + start, first + stop


def runs_of(chosen: np.ndarray) -> list[Run]:
    """Return the runs `(start, stop)` of True in a bool array [n]."""
    if len(chosen) == 1:
        return [(0, 1)] if chosen[0] else []
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
