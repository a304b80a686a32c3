"""Rows of granted extents in the feed's memory, and the order in which a window is stored and served.

An extent is a run of rows of one window in the order in which they are served. At turn 0 that is their order in memory; later
turns serve a permutation of it. The seed, the epoch and the window's number determine every order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from actscope.extraction.contract import ROW_LABEL
from actscope.feed.buffer.memory import FeedMemory
from actscope.permutation import Permutation

#: ROW_LABEL as raw bytes: numpy copies those as memory, structured ones field by field.
_OPAQUE = np.dtype(f"V{ROW_LABEL.itemsize}")


class Extent(Protocol):
    """`RowRange` of the allocator, or its form on the wire, `Stretch`."""

    @property
    def window(self) -> int:
        """Return the index of the window in memory."""

    @property
    def generation(self) -> int:
        """Return the window's generation when the rows were granted."""

    @property
    def epoch(self) -> int:
        """Return the epoch of the rows."""

    @property
    def number(self) -> int:
        """Return the number of the window in its epoch, from 0."""

    @property
    def turn(self) -> int:
        """Return the number of the serving; 0 is the first."""

    @property
    def window_rows(self) -> int:
        """Return the number of rows in the whole window."""

    @property
    def start(self) -> int:
        """Return the first row, in the order of this serving."""

    @property
    def n(self) -> int:
        """Return the number of rows."""


def indices_of(extent: Extent, seed: int) -> slice | np.ndarray:
    """Return the indices of an extent's rows in its window: a slice at turn 0, int64 [n] at later turns."""
    start, stop = extent.start, extent.start + extent.n
    if extent.turn == 0:
        return slice(start, stop)
    return served(extent.window_rows, start, stop, seed, extent.epoch, extent.number, extent.turn)


def values_of(memory: FeedMemory, extent: Extent, site: int, seed: int) -> np.ndarray:
    """Return an extent's rows [n, width] of one site, as in `memory.STORED_AS`: a view of the memory at turn 0, else a copy."""
    return _rows_at(memory.plane(extent.window, site), indices_of(extent, seed))


def labels_of(memory: FeedMemory, extents: Sequence[Extent], seed: int) -> np.ndarray:
    """Return a copy of the labels of these extents' rows, ROW_LABEL [n]."""
    parts = [_rows_at(memory.labels(e.window).view(_OPAQUE), indices_of(e, seed)) for e in extents]
    return np.concatenate(parts).view(ROW_LABEL) if parts else np.empty(0, ROW_LABEL)


def unchanged(memory: FeedMemory, extents: Sequence[Extent]) -> bool:
    """Return whether none of the windows is being refilled, so that everything read from them before this call is intact.

    The windows are seqlocks: a window's generation changes before its first row is overwritten.
    """
    return all(memory.generations[extent.window] == extent.generation for extent in extents)


def _rows_at(rows: np.ndarray, indices: slice | np.ndarray) -> np.ndarray:
    return rows[indices] if isinstance(indices, slice) else rows.take(indices, axis=0)


def places(window_rows: int, start: int, stop: int, seed: int, epoch: int, number: int, *, shuffle: bool) -> np.ndarray:
    """Return the memory indices (int64) of rows `start .. stop - 1` of a window's stream."""
    if not shuffle:
        return np.arange(start, stop)
    return Permutation(window_rows, "place", seed, epoch, number).part(start, stop)


def served(n_rows: int, start: int, stop: int, seed: int, epoch: int, number: int, turn: int) -> np.ndarray:
    """Return the memory indices (int64) of rows `start .. stop - 1` in the `turn`-th re-serving (turn >= 1) of a window."""
    return Permutation(n_rows, "turn", seed, epoch, number, turn).part(start, stop)
