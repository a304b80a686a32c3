"""Filling one window: chunks of the epoch's stream are read, and each row is written where it will be served from."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from actscope.errors import FeedError
from actscope.extraction.contract import ROW_LABEL, ExtractedRows, Reader
from actscope.extraction.stream import TextStream
from actscope.feed.buffer.gather import places
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.messages import Filled, FillWindow, WindowSums

_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OPAQUE = np.dtype(f"V{ROW_LABEL.itemsize}")  # numpy copies these as bytes, structured dtypes field by field
_BLOCK = 16384
_SUMMED_AT_ONCE = 1024  # in float64, with their squares: up to eight times the rows' own size

Progress = Callable[[int], None]


class Filler:
    """Writer of windows into `memory`. `stream_of(epoch)` returns the stream of an epoch."""

    def __init__(
        self, reader: Reader, stream_of: Callable[[int], TextStream], memory: FeedMemory, *, seed: int, shuffle: bool
    ) -> None:
        self._reader, self._stream_of, self._memory = reader, stream_of, memory
        self._seed, self._shuffle = seed, shuffle
        self._layout = memory.layout
        self._last: tuple[tuple[int, int], ExtractedRows] | None = None

    def fill(self, order: FillWindow, progress: Progress) -> Filled:
        """Fill a window.

        Args:
            order: The window, and the place of its rows in the feed's order.
            progress: Called after each chunk with the number of rows written so far.

        Returns:
            The number of rows, and where the next window begins. There are fewer rows only at the end of an epoch.

        Raises:
            FeedError: The dataset gives no row at all, or the position belongs to another order.
            SettingsError: The position lies beyond the end of the epoch.
            EngineError: The model failed.
        """
        begin = time.monotonic()
        stream = self._stream_of(order.epoch)
        begun = order.mark if order.mark is not None else stream.locate(order.number * self._layout.window_rows)
        sums = [_FillSums(self._layout.width) for _ in self._reader.facts.sites]
        (chunk, skip), n = begun, 0
        while n < self._layout.window_rows and chunk < stream.n_chunks:
            rows = self._read(order.epoch, chunk, stream)
            if skip > len(rows.labels):
                raise FeedError(
                    f"chunk {chunk} has {len(rows.labels)} rows: the position, {skip} rows into it, belongs to another order"
                )
            stop = min(len(rows.labels), skip + self._layout.window_rows - n)
            self._put(order, rows, skip, stop, n, sums)
            n += stop - skip
            chunk, skip = (chunk + 1, 0) if stop == len(rows.labels) else (chunk, stop)
            progress(n)
        if n == 0 and order.number == 0:
            raise FeedError(
                "the dataset gives no row: all its texts are empty, or the token mask leaves out all tokens"
            )
        if 0 < n < self._layout.window_rows:
            self._close_ranks(order, n)
        return Filled(
            window=order.window,
            n_rows=n,
            begun=begun,
            after=(chunk, skip),
            epoch_over=chunk >= stream.n_chunks,
            seconds=time.monotonic() - begin,
            sums=[one.message() for one in sums],
        )

    def _read(self, epoch: int, chunk: int, stream: TextStream) -> ExtractedRows:
        """Return the rows of a chunk. The last chunk is cached, because the next window often begins in its middle."""
        if self._last is None or self._last[0] != (epoch, chunk):
            self._last = None
            self._last = (epoch, chunk), self._reader.read(stream.pieces(chunk))
        return self._last[1]

    def _put(self, order: FillWindow, rows: ExtractedRows, skip: int, stop: int, n: int, sums: list[_FillSums]) -> None:
        """Write rows `skip` to `stop - 1` of a chunk to a window that has `n` rows, and add them to the sums."""
        layout = self._layout
        to = places(
            layout.window_rows, n, n + stop - skip, self._seed, order.epoch, order.number, shuffle=self._shuffle
        )
        self._memory.labels(order.window).view(_OPAQUE)[to] = rows.labels[skip:stop].view(_OPAQUE)
        index = torch.from_numpy(to)
        for i, site in enumerate(self._reader.facts.sites):
            values = rows.values[site][skip:stop]
            self._plane(order.window, i).index_copy_(0, index, values)
            sums[i].add(values)

    def _plane(self, window: int, site: int) -> Tensor:
        """Return a view of a window's rows at one site, [window_rows, width]."""
        return torch.from_numpy(self._memory.plane(window, site)).view(_TORCH[self._layout.dtype])

    def _close_ranks(self, order: FillWindow, n: int) -> None:
        """Move the rows of an epoch's last window, which is not full, to its front in their order. It stays uniformly random."""
        taken = np.sort(
            places(self._layout.window_rows, 0, n, self._seed, order.epoch, order.number, shuffle=self._shuffle)
        )
        labels = self._memory.labels(order.window).view(_OPAQUE)
        planes = [self._plane(order.window, i) for i in range(self._layout.n_sites)]
        for start in range(0, n, _BLOCK):  # rows only move forward: none is overwritten before it has moved
            block = taken[start : start + _BLOCK]
            labels[start : start + len(block)] = labels[block]
            index = torch.from_numpy(block)
            for plane in planes:
                plane[start : start + len(block)] = plane[index]


class _FillSums:
    """Sums over a window's rows at one site, in float64."""

    def __init__(self, width: int) -> None:
        self._values = np.zeros(width)
        self._squares = np.zeros(width)
        self._norms = 0.0

    def add(self, rows: Tensor) -> None:
        for start in range(0, len(rows), _SUMMED_AT_ONCE):
            values = rows[start : start + _SUMMED_AT_ONCE].to(torch.float64)
            squares = values.square()
            self._values += values.sum(0).numpy()
            self._squares += squares.sum(0).numpy()
            self._norms += float(squares.sum(1).sqrt().sum())

    def message(self) -> WindowSums:
        return WindowSums(self._values.tobytes(), self._squares.tobytes(), self._norms)
