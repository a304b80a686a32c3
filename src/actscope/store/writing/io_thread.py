"""I/O thread: writes buffers to segment files, then advances the watermark."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from actscope.store.format.watermark import WatermarkFile
from actscope.store.options import StoreOptions
from actscope.store.writing.buffers import Buffer
from actscope.store.writing.pipeline_state import PipelineState
from actscope.store.writing.segment_file import SegmentFile


class IoThread:
    """Loop that writes the queued buffers in order. The first error ends it and poisons the store.

    A group commit is: fdatasync of the segment, the new durable position in the watermark, fdatasync of the watermark. A segment
    is fully durable before the next one is created, so damage in an earlier segment is never a torn tail.
    """

    def __init__(
        self,
        directory: Path,
        flow: PipelineState,
        mark: WatermarkFile,
        options: StoreOptions,
        direct: bool,
        flush: Callable[[], bool],
    ) -> None:
        self._directory = directory
        self._state = flow
        self._mark = mark
        self._options = options
        self._direct = direct
        self._flush = flush  # queues the current buffer unless an appender holds the lock; returns whether it did
        self._file: SegmentFile | None = None
        self._committed = time.monotonic()

    def run(self) -> None:
        """Run until the store is stopped and its queue is empty, or until an error."""
        try:
            while self._turn():
                pass
        except Exception as error:  # boundary: fail() reports the error to appenders and waiters
            self._state.fail(error)
        finally:
            if self._file is not None:
                self._file.close()

    def _turn(self) -> bool:
        batch = self._state.next(self._deadline)
        if batch:
            self._write(batch)
        elif self._state.stopping:
            return False
        if self._state.sync_due():
            self._commit()
        elif time.monotonic() >= self._deadline() and self._state.accepted > self._state.durable.number:
            if not batch and self._flush():
                return True  # the tail is written first, then everything is committed
            self._commit()
        return True

    def _deadline(self) -> float:
        return self._committed + self._options.commit_seconds

    def _write(self, batch: list[Buffer]) -> None:
        if self._file is None:
            self._file = SegmentFile(self._directory, batch[0].segment, self._options, self._direct)
            self._state.segments += 1
        assert all(buffer.segment == self._file.number for buffer in batch)
        self._file.write([buffer.written() for buffer in batch], batch[0].offset)
        written = max((buffer.upto for buffer in batch if buffer.upto), default=self._state.written)
        self._mark.put(replace(self._mark.state, written=written))
        finish = batch[-1].finish
        self._state.recycle(batch, written)
        if finish is not None:
            self._finish(self._file, finish)

    def _finish(self, file: SegmentFile, length: int) -> None:
        file.finish(length)
        self._commit_mark()
        self._file = None
        file.close()

    def _commit(self) -> None:
        if self._file is not None:
            self._file.sync()
        self._commit_mark()

    def _commit_mark(self) -> None:
        written = self._state.written
        self._mark.put(replace(self._mark.state, written=written, durable=written))
        self._mark.sync()
        self._committed = time.monotonic()
        self._state.committed(written)
