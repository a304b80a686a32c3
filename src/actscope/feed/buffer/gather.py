"""From a stretch that was granted to its rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from actscope.extraction.contract import ROW_LABEL
from actscope.feed.buffer.memory import FeedMemory
from actscope.permutation import Permutation

_OPAQUE = np.dtype(f"V{ROW_LABEL.itemsize}")


class Stretched(Protocol):
    """An Extent of the buffer, or what came of it over a socket."""

    @property
    def window(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def turn(self) -> int: ...
    @property
    def window_rows(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def n(self) -> int: ...


def values_of(memory: FeedMemory, extent: Stretched, site: int, seed: int) -> np.ndarray:
    """[n, width], as in `memory.STORED_AS`: a view of the memory the first time round, a copy later."""
    return _chosen(memory.plane(extent.window, site), extent, seed)


def labels_of(memory: FeedMemory, extents: Sequence[Stretched], seed: int) -> np.ndarray:
    """ROW_LABEL [n], copied."""
    parts = [_chosen(memory.labels(extent.window).view(_OPAQUE), extent, seed) for extent in extents]
    return np.concatenate(parts).view(ROW_LABEL) if parts else np.empty(0, ROW_LABEL)


def unchanged(memory: FeedMemory, extents: Sequence[Stretched]) -> bool:
    """Whether none of the windows has begun to be filled again: what was read of them before this call is whole."""
    return all(memory.generations[extent.window] == extent.generation for extent in extents)


def _chosen(rows: np.ndarray, extent: Stretched, seed: int) -> np.ndarray:
    stop = extent.start + extent.n
    if extent.turn == 0:
        return rows[extent.start : stop]
    order = served(extent.window_rows, extent.start, stop, seed, extent.epoch, extent.number, extent.turn)
    return rows.take(order, axis=0)


def places(window_rows: int, start: int, stop: int, seed: int, epoch: int, number: int, *, shuffle: bool) -> np.ndarray:
    """Where rows start .. stop - 1 of a window's stream lie in it: int64."""
    if not shuffle:
        return np.arange(start, stop)
    return Permutation(window_rows, "place", seed, epoch, number).part(start, stop)


def served(n_rows: int, start: int, stop: int, seed: int, epoch: int, number: int, turn: int) -> np.ndarray:
    """Which rows of a window, as they lie in it, are number start .. stop - 1 of its `turn`-th time round, 1 or later: int64."""
    return Permutation(n_rows, "turn", seed, epoch, number, turn).part(start, stop)
