"""The writer of a ring, used by engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.errors import RingError
from actscope.frames import ROW_META, SCORES, Frame, SinkStats, SplitFrame, Step
from actscope.ring import futex
from actscope.ring.layout import (
    MAX_WEIGHTS,
    NO_FLAGS,
    SPAN_STRUCT,
    STEP_STRUCT,
    RingSpec,
    StepFlag,
    Word,
    request_bytes,
)
from actscope.ring.segment import OPAQUE_META, Segment, unlink

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Payload:
    """The validated content of a step. `rows` are column blocks, or None if none are stored; `flags` is the reason then."""

    n_spans: int
    rows: tuple[np.ndarray, ...] | None
    flags: StepFlag = NO_FLAGS


class RingWriter:
    """Single-producer writer of a ring: a `Sink` whose `write` never blocks and never raises.

    Only one thread may call `write`. It makes a small, fixed number of copies, whatever the number of rows, and never waits
    for readers. Rows that cannot be written are counted exactly (`stats().dropped_rows`), and their step is published without
    them.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment: Segment | None = segment
        self.name = segment.name
        self.spec = segment.spec
        self._dtype, self._row_bytes = self.spec.row_dtype, self.spec.row_bytes
        self._stats = SinkStats()
        self._row = self._span = self._step = 0  # the next index of each; the ring's counters follow them
        self._scratch = bytearray(self.spec.span_capacity * SPAN_STRUCT.size)
        self._reported: set[str] = set()

    @classmethod
    def create(cls, spec: RingSpec) -> RingWriter:
        """Create a ring under a random name.

        Args:
            spec: The ring's sizes.

        Raises:
            RingError: There is not enough shared memory.
        """
        writer = cls(Segment.create(spec))
        writer.beat()
        return writer

    def write(self, step: Step, frames: Sequence[Frame | SplitFrame]) -> None:
        """Publish one step with the rows of the frame named `frames.SCORES`, and wake the readers.

        Args:
            step: The step. Its `meta` must be ROW_META.
            frames: Its frames. The scores' rows are [n_rows, width] in the ring's dtype or one that casts to it, or a tuple
                of column blocks, which are stored side by side and spare the caller a copy.
        """
        segment = self._segment
        if segment is None:
            self._stats.dropped_rows += step.n_rows
            return
        try:
            self._publish(segment, step, self._prepare(step, frames))
        except Exception as error:  # boundary to the model's thread: count, log, and stop writing
            self._report("the ring is closed after an internal error", error)
            self._stats.dropped_rows += step.n_rows
            self.close()

    def beat(self) -> None:
        """Update the heartbeat, to show that the writer lives although it has no steps to write. Thread-safe."""
        segment = self._segment
        if segment is not None:
            segment.words[Word.HEARTBEAT_NS] = time.monotonic_ns()

    def stats(self) -> SinkStats:
        """Return exact counts of published steps, of their rows in the ring, and of dropped rows."""
        return replace(self._stats)

    def close(self) -> None:
        """Mark the ring closed, wake its readers and remove its name. Attached readers can still read the remaining steps."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        segment.words[Word.CLOSED] = 1
        futex.wake(segment.published_address)
        unlink(self.name)
        segment.close()

    # -- one step: everything that can fail happens before the first store into the ring --

    def _prepare(self, step: Step, frames: Sequence[Frame | SplitFrame]) -> _Payload:
        n_spans = 0
        try:
            if step.n_rows > self.spec.row_capacity or len(step.spans) > self.spec.span_capacity:
                self._report("a step is larger than the ring", None)
                return _Payload(self._encode(step), None, StepFlag.OVERSIZE)
            n_spans = self._encode(step)
            rows = self._rows_of(step, frames)
            return _Payload(n_spans, rows, NO_FLAGS if rows is not None else StepFlag.NO_SCORES)
        except Exception as error:  # a malformed step must not stop the model: publish it flagged
            self._report("a step was refused", error)
            return _Payload(n_spans, None, StepFlag.REFUSED)

    def _encode(self, step: Step) -> int:
        """Pack the spans into the scratch records. Returns their number, or 0 if the ring cannot hold them."""
        if len(step.spans) > self.spec.span_capacity:
            return 0
        scratch, size, pack, most = self._scratch, SPAN_STRUCT.size, SPAN_STRUCT.pack_into, step.n_rows
        at = 0
        for span in step.spans:  # this runs for every request of every pass
            first, n, offset = span.first_position, span.n_rows, span.offset
            if offset + n > most:
                raise RingError(f"span {span} reaches past the step's {most} rows")
            request = request_bytes(span.request)
            pack(scratch, at, first, n, offset, span.flags, span.n_prompt, len(request), 0, request)
            at += size
        return len(step.spans)

    def _rows_of(self, step: Step, frames: Sequence[Frame | SplitFrame]) -> tuple[np.ndarray, ...] | None:
        if step.meta.dtype is not ROW_META and step.meta.dtype != ROW_META:
            raise RingError(f"step {step.number}: meta must be ROW_META, found {step.meta.dtype}")
        scores = [f.blocks if isinstance(f, SplitFrame) else (f.rows,) for f in frames if f.site == SCORES]
        if not scores:
            return None if step.n_rows else (np.empty((0, self.spec.width), self._dtype),)
        rows = tuple(self._as_ours(step, np.asarray(block)) for block in scores[0])
        shape = (len(rows[0]), sum(block.shape[1] for block in rows))
        if shape != (step.n_rows, self.spec.width) or any(len(block) != step.n_rows for block in rows):
            raise RingError(
                f"step {step.number}: scores must be [{step.n_rows}, {self.spec.width}], found {list(shape)}"
            )
        return rows

    def _as_ours(self, step: Step, rows: np.ndarray) -> np.ndarray:
        if rows.ndim != 2:
            raise RingError(
                f"step {step.number}: scores must be [{step.n_rows}, {self.spec.width}], found {rows.shape}"
            )
        if rows.dtype is not self._dtype and not np.can_cast(rows.dtype, self._dtype, "same_kind"):
            raise RingError(f"step {step.number}: scores are {rows.dtype}, the ring holds {self.spec.dtype}")
        return rows if rows.dtype is self._dtype else rows.astype(self._dtype, copy=False)

    def _publish(self, segment: Segment, step: Step, payload: _Payload) -> None:
        rows, n_spans = payload.rows, payload.n_spans
        n_rows = 0 if rows is None else len(rows[0])
        dropped = step.n_rows - n_rows
        first_row, first_span, index = self._row, self._span, self._step
        self._row, self._span, self._step = first_row + n_rows, first_span + n_spans, index + 1
        dropped_total = self._stats.dropped_rows + dropped
        record = STEP_STRUCT.pack(
            *(self._step, step.number, step.time_ns, step.generation, first_row, first_span, dropped_total),
            *(n_rows, n_spans, dropped, payload.flags, min(step.weights, MAX_WEIGHTS)),
            *step.times,
        )

        words = segment.words
        words[Word.ROWS_RESERVED] = self._row
        words[Word.SPANS_RESERVED] = self._span
        words[Word.STEPS_RESERVED] = self._step
        small = n_rows * self._row_bytes < futex.STREAMING_BYTES
        futex.fence() if small else futex.full_fence()
        if rows is not None and n_rows:
            self._copy_rows_in(segment.rows, first_row, rows)
            _copy_in(segment.meta, first_row, _opaque(step.meta))
        self._copy_spans_in(segment.spans, first_span, n_spans)
        where = index % self.spec.step_capacity * STEP_STRUCT.size
        segment.steps[where : where + STEP_STRUCT.size] = record
        futex.fence()
        words[Word.STEPS_PUBLISHED] = self._step
        futex.wake(segment.published_address)
        words[Word.HEARTBEAT_NS] = time.monotonic_ns()
        self._stats = SinkStats(self._step, self._row, dropped_total)

    def _copy_rows_in(self, ring: np.ndarray, start: int, blocks: tuple[np.ndarray, ...]) -> None:
        if len(blocks) == 1:
            _copy_in(ring, start, blocks[0])
            return
        column = 0
        for block in blocks:
            _copy_in(ring[:, column : column + block.shape[1]], start, block)
            column += block.shape[1]

    def _copy_spans_in(self, ring: memoryview, start: int, count: int) -> None:
        begin, size = start % self.spec.span_capacity, SPAN_STRUCT.size
        head = min(count, self.spec.span_capacity - begin) * size
        ring[begin * size : begin * size + head] = self._scratch[:head]
        if head < count * size:
            ring[: count * size - head] = self._scratch[head : count * size]

    def _report(self, what: str, error: Exception | None) -> None:
        """Log each kind of problem once: a log line costs more than a step."""
        kind = f"{what} {type(error).__name__}"
        if kind not in self._reported:
            self._reported.add(kind)
            _log.warning("%s: %s: %s (further ones are only counted)", self.name, what, error or f"it is {self.spec}")


def _opaque(meta: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(meta).view(OPAQUE_META)


def _copy_in(ring: np.ndarray, start: int, records: np.ndarray) -> None:
    """Copy `records` to indices `start ..` of a circular array, in at most two slices."""
    begin = start % len(ring)
    head = len(ring) - begin
    if len(records) <= head:
        ring[begin : begin + len(records)] = records
    else:
        ring[begin:], ring[: len(records) - head] = records[:head], records[head:]
