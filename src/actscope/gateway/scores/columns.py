"""Append-only columns: the scores and the events of one request, in compact arrays."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from actscope.gateway.scores.probe_table import NO_COLUMNS, Columns


@dataclass(slots=True)
class ScoreSegment:
    """Scores from position `start` on, all under one set of columns. The first `n` rows of `values` are in use."""

    columns: Columns
    start: int
    values: np.ndarray
    n: int = 0

    def append(self, values: np.ndarray) -> None:
        """Append rows [m, columns.width]. The capacity doubles when it is full."""
        n = self.n
        if len(values) == 1 and n < len(self.values):
            self.values[n] = values[0]
            self.n = n + 1
            return
        if n + len(values) > len(self.values):
            wider = np.empty((max(2 * len(self.values), n + len(values)), self.values.shape[1]), np.float32)
            wider[:n] = self.values[:n]
            self.values = wider
        self.values[n : n + len(values)] = values
        self.n = n + len(values)


class ScoreColumn:
    """Scores of positions 0, 1, 2, … without gaps, under columns that may change.

    A cell is NaN where its probe computed nothing. Each row also has a state byte: 0 never computed, 1 computed, 2 computed for
    an earlier request and taken over with the cached prefix.
    """

    def __init__(self) -> None:
        self.segments: list[ScoreSegment] = []
        self._computed = bytearray()

    def __len__(self) -> int:
        return len(self._computed)

    def append(self, columns: Columns, values: np.ndarray, computed: bytes) -> None:
        """Append rows [n, columns.width] with their state bytes."""
        self._segment(columns).append(values)
        self._computed += computed

    def append_missing(self, columns: Columns, n: int) -> None:
        """Append `n` rows that were never computed."""
        self.append(columns, np.full((n, columns.width), np.nan, np.float32), bytes(n))

    def forget(self, position: int) -> None:
        """Change the state of one row to never computed, because its label was wrong."""
        self._computed[position] = 0

    def columns_over(self, a: int, b: int) -> Columns:
        """Return the columns of rows `a .. b`. If they changed in between, those are joined (see `Columns.joined`)."""
        if self.segments and a >= self.segments[-1].start:
            return self.segments[-1].columns
        found = [s.columns for s in self.segments if s.start < b and s.start + s.n > a]
        joined = found[0] if found else NO_COLUMNS
        for columns in found[1:]:
            joined = joined.joined(columns)
        return joined

    def values(self, a: int, b: int, columns: Columns) -> np.ndarray:
        """Return rows `a .. b` under `columns`, float32 [b - a, width]. May be a view.

        A cell is NaN if its probe, or this version of it, was not loaded when the row was computed.
        """
        last = self.segments[-1]
        if a >= last.start and columns is last.columns:
            return last.values[a - last.start : b - last.start]
        if a >= last.start and columns is last.columns.probes:
            return last.values[a - last.start : b - last.start, : len(columns.ids)]
        out = np.full((b - a, columns.width), np.nan, np.float32)
        for segment in self.segments:
            lo, hi = max(a, segment.start), min(b, segment.start + segment.n)
            if lo < hi:
                _copy_same(
                    out[lo - a : hi - a],
                    columns,
                    segment.values[lo - segment.start : hi - segment.start],
                    segment.columns,
                )
        return out

    def computed(self, a: int, b: int) -> bytes:
        """Return a byte for each row of `a .. b`: 1 if it was computed or cached, else 0."""
        return bytes(self._computed[a:b]).replace(b"\x02", b"\x01")

    def n_cached(self, n: int) -> int:
        """Return how many of the first `n` rows came with a cached prefix."""
        return self._computed.count(2, 0, n)

    def has_row(self, position: int) -> bool:
        """Return whether the row of a position was computed."""
        return self._computed[position] != 0

    def is_whole(self, n: int, columns: Columns) -> bool:
        """Return whether the first `n` rows were all computed, and have finite values. Costs one pass over them."""
        return not self._computed.count(0, 0, n) and math.isfinite(self.values(0, n, columns).sum())

    def states(self, a: int, b: int) -> np.ndarray:
        """Return the state byte of each row of `a .. b`: uint8 [b - a]."""
        return np.frombuffer(bytes(self._computed[a:b]), np.uint8)

    def computed_here(self, a: int, b: int) -> np.ndarray:
        """Return which rows of `a .. b` were computed for this request, cached ones excluded: bool [b - a]."""
        here: np.ndarray = self.states(a, b) == 1
        return here

    def _segment(self, columns: Columns) -> ScoreSegment:
        last = self.segments[-1] if self.segments else None
        if last is None or (last.columns is not columns and last.columns != columns):
            self.segments.append(ScoreSegment(columns, len(self), np.empty((8, columns.width), np.float32)))
        return self.segments[-1]


def _copy_same(out: np.ndarray, to: Columns, rows: np.ndarray, of: Columns) -> None:
    known = of.keys
    for i, key in enumerate(to.keys):
        if key in known:
            out[:, i] = rows[:, known.index(key)]
    if to.sae is not None and to.sae == of.sae:
        out[:, len(to.ids) :] = rows[:, len(of.ids) :]


class EventKind(IntEnum):
    """Kind of an event. Its name on the wire is in lower case."""

    TOKEN = 0
    PROBE_UPDATE = 1
    PROBE_FINAL = 2
    DONE = 3


class EventColumn:
    """Events of one request in order. Event i has id i + 1 on the wire, and refers to positions `a .. b`."""

    def __init__(self) -> None:
        self._kinds = bytearray()
        self._starts = array("q")
        self._ends = array("q")
        self._times = array("d")

    def __len__(self) -> int:
        return len(self._kinds)

    def append(self, kind: EventKind, a: int = 0, b: int = 0, seconds: float = 0.0) -> None:
        """Append an event at `seconds` after the request began."""
        self._kinds.append(kind)
        self._starts.append(a)
        self._ends.append(b)
        self._times.append(seconds)

    def token_seconds(self, after: int) -> np.ndarray:
        """Return when tokens at positions from `after` on arrived: float64 [events], in seconds after the request began."""
        kinds, ends = np.array(self._kinds, np.uint8), np.array(self._ends, np.int64)
        times: np.ndarray = np.array(self._times, np.float64)[(kinds == EventKind.TOKEN) & (ends > after)]
        return times

    def __getitem__(self, i: int) -> tuple[EventKind, int, int, float]:
        """Return (kind, a, b, seconds) of event i."""
        return EventKind(self._kinds[i]), self._starts[i], self._ends[i], self._times[i]
