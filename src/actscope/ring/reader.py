"""The reader of a ring."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from actscope.counters import counted, counting
from actscope.errors import RingClosed, RingError
from actscope.frames import NO_TIMES, ROW_META, PassTimes, Span, SpanFlag
from actscope.ring import futex
from actscope.ring.layout import MAX_REQUEST_ID, NO_FLAGS, SPAN_STRUCT, STEP_STRUCT, RingSpec, StepFlag, Word
from actscope.ring.segment import FOREIGN_SILENCE_NS, Segment
from actscope.runtime.process import Process

#: Limits of one `read`: it returns soon, and the writer is unlikely to lap it meanwhile.
MAX_STEPS_PER_READ = 4096
MAX_BYTES_PER_READ = 32 << 20

_ATTEMPTS = 8
_NAP_S = 0.25  # interval at which a waiting reader checks that the writer lives
_SPAN_FLAGS = [SpanFlag(bits) for bits in range(16)]  # constructing one costs more than the rest of a span
_STEP_FLAGS = [StepFlag(bits) for bits in range(8)]


@dataclass(slots=True, eq=False)
class StepRecord:
    """One step read from a ring.

    Attributes:
        number: Number of the step in its engine, from 1.
        time_ns: CLOCK_MONOTONIC at publication, in nanoseconds.
        generation: Generation of the probe table in force.
        spans: Which rows belong to which request.
        meta: ROW_META [n], a view of the batch's copy.
        rows: [n, width] in the ring's dtype, a view of the batch's copy.
        flags: If not 0, the reason why the step has no rows although its spans name some.
        dropped_rows: Number of the step's rows that were never in the ring.
        weights: How often the engine's weights had changed since it loaded them; at most `layout.MAX_WEIGHTS`.
        times: When the pass crossed the borders of its engine, as far as the engine tells.
    """

    number: int
    time_ns: int
    generation: int
    spans: tuple[Span, ...]
    meta: np.ndarray
    rows: np.ndarray
    flags: StepFlag = NO_FLAGS
    dropped_rows: int = 0
    weights: int = 0
    times: PassTimes = NO_TIMES


@dataclass(slots=True, eq=False)
class StepBatch:
    """Consecutive, intact steps, copied out of the ring.

    Attributes:
        steps: The steps, oldest first.
        rows: [n, width], the rows of all steps.
        meta: ROW_META [n], the labels of all rows.
        missed_steps: Steps that were overwritten between the previous batch and this one.
        missed_rows: Rows of the missed steps.
    """

    steps: list[StepRecord]
    rows: np.ndarray
    meta: np.ndarray
    missed_steps: int = 0
    missed_rows: int = 0


@counting("reader")
@dataclass(slots=True)
class ReaderStats:
    """Exact counts since the reader attached, up to its cursor.

    `rows + missed_rows` equals the number of rows that the writer put into the ring, and `steps + missed_steps` the number
    of steps.

    Attributes:
        steps: Steps delivered.
        rows: Rows delivered.
        missed_steps: Steps overwritten before they were read.
        missed_rows: Rows of missed steps.
        dropped_rows: Rows that the writer never put into the ring (see StepFlag).
        raced_steps: Missed steps that were overwritten during the copy, which was discarded. Without the seqlock's check
            they would have been delivered torn.
    """

    steps: int = counted("work", "Passes that were read from the ring.")
    rows: int = counted("work", "Rows that were read from the ring.")
    missed_steps: int = counted(
        "loss",
        "Passes that the engine had overwritten in the ring before they were read.",
        "See reader_missed_rows.",
    )
    missed_rows: int = counted(
        "loss",
        "Rows that the engine had overwritten in the ring before they were read; they have no scores here.",
        "Give the ring more rows (ACTSCOPE_RING_ROWS, --ring-rows), or the reader more CPU time.",
    )
    dropped_rows: int = counted(
        "loss",
        "Rows that the engine did not put into the ring, because their pass was larger than the ring or malformed.",
        "Give the ring more rows (ACTSCOPE_RING_ROWS, --ring-rows); see the engine's log for the first one.",
    )
    raced_steps: int = counted("work", "Missed passes that were overwritten during the copy, which was discarded.")


class _Record(NamedTuple):
    """A STEP record as Python integers, whose arithmetic cannot overflow."""

    seq: int
    number: int
    time_ns: int
    generation: int
    first_row: int
    first_span: int
    dropped_total: int
    n_rows: int
    n_spans: int
    dropped_rows: int
    flags: int
    weights: int
    scheduled_ns: int
    begun_ns: int
    ended_ns: int
    sampling_ns: int
    sampled_ns: int
    before_sampling_ns: int
    before_sampled_ns: int


#: Index of the first of the fields that make a step's `PassTimes`.
_TIMES_FROM = _Record._fields.index("scheduled_ns")

_first_row = attrgetter("first_row")
_first_span = attrgetter("first_span")


def _row_end(record: _Record) -> int:
    return record.first_row + record.n_rows


@dataclass(slots=True)
class _Cursor:
    """Next step, next row, and rows dropped so far. Everything before the cursor is accounted for."""

    step: int = 0
    row: int = 0
    dropped: int = 0


class RingReader:
    """Lock-free reader of a ring (seqlock): delivers intact steps only, and counts exactly those that it missed.

    Readers do not affect the writer or each other. One thread reads; another thread may call `close`.
    """

    def __init__(self, segment: Segment, *, from_oldest: bool = False) -> None:
        self.name = segment.name
        self.spec: RingSpec = segment.spec
        self._segment: Segment | None = segment
        self._writer = Process(segment.header.pid, segment.header.pid_start, segment.header.pid_namespace)
        self._lock = threading.Lock()  # held while the mapping is used, so that `close` cannot unmap it meanwhile
        self._stats = ReaderStats()
        self._gap = (0, 0)  # steps and rows missed since the last batch
        self._cursor = self._origin(segment, from_oldest)

    @classmethod
    def attach(cls, name: str, *, from_oldest: bool = False) -> RingReader:
        """Attach to a ring.

        Args:
            name: Name of the ring's segment.
            from_oldest: Begin with the oldest step that is still in the ring, instead of the next one to be published.

        Raises:
            RingError: The ring is missing, belongs to another user, or is malformed.
        """
        segment = Segment.attach(name)
        try:
            return cls(segment, from_oldest=from_oldest)
        except RingError:
            segment.close()
            raise

    def read(self) -> StepBatch | None:
        """Read the steps published since the last call, without waiting.

        Returns:
            At most 4096 steps and 32 MiB of rows (but at least one step), or None if there is nothing new.

        Raises:
            RingClosed: The reader has been closed.
            RingError: The ring's content is inconsistent.
        """
        with self._lock:
            segment = self._segment
            if segment is None:
                raise RingClosed(f"{self.name}: this reader is closed: attach again")
            for attempt in range(_ATTEMPTS):
                published = self._published(segment)
                if published == self._cursor.step:
                    return None
                batch = self._read_one(segment) if published == self._cursor.step + 1 else None
                if batch is None:
                    batch = self._try_read(segment, published, attempt)
                if batch is not None:
                    return batch
            return None

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is something to read.

        Args:
            timeout_s: Maximum time to wait, in seconds.

        Returns:
            True if there are steps to read. False if the time ran out, the ring or the reader was closed, or the writer died.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                segment = self._segment
                if segment is None:
                    return False
                closed = segment.words[Word.CLOSED]
                published = self._published(segment)
                if published != self._cursor.step:
                    return True
                left = deadline - time.monotonic()
                if closed or left <= 0:
                    return False
                woken = futex.wait(segment.published_address, published & 0xFFFFFFFF, min(left, _NAP_S))
            if not woken and not self.writer_alive():
                return self._has_news()

    def writer_alive(self) -> bool:
        """Return whether more steps can come: the writer has not closed the ring, and its process runs.

        The process of another container cannot be checked: there, the heartbeat must be younger than 30 s.
        """
        with self._lock:
            segment = self._segment
            if segment is None or segment.words[Word.CLOSED]:
                return False
            if self._writer.visible:
                return self._writer.alive()
            return time.monotonic_ns() - segment.words[Word.HEARTBEAT_NS] < FOREIGN_SILENCE_NS

    @property
    def published(self) -> int:
        """Return the number of steps that the writer has published. Raises RingClosed or RingError as `read` does."""
        with self._lock:
            if self._segment is None:
                raise RingClosed(f"{self.name}: this reader is closed: attach again")
            return self._published(self._segment)

    @property
    def next_step(self) -> int:
        """Return the index of the next step, counted from the ring's first: those before it were read, or are missed."""
        return self._cursor.step

    @property
    def next_row(self) -> int:
        """Return the index of the next row, counted from the ring's first: everything before it was read, or is missed."""
        return self._cursor.row

    def stats(self) -> ReaderStats:
        """Return exact counts of delivered, missed and dropped steps and rows, up to the last `read`."""
        return replace(self._stats)

    def close(self) -> None:
        """Unmap the ring. A `wait` in another thread returns False."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with self._lock:
                segment.close()

    # -- one attempt: copy, then check whether the writer has overwritten the source meanwhile --

    def _published(self, segment: Segment) -> int:
        published = segment.words[Word.STEPS_PUBLISHED]
        if not self._cursor.step <= published <= segment.words[Word.STEPS_RESERVED]:
            raise self._damaged(f"steps_published is {published}, outside {self._cursor.step} .. steps_reserved")
        return published

    def _has_news(self) -> bool:
        with self._lock:
            return self._segment is not None and self._published(self._segment) != self._cursor.step

    def _try_read(self, segment: Segment, published: int, attempt: int) -> StepBatch | None:
        """Return a batch, or move the cursor past lost steps and return None."""
        oldest = _low(segment, Word.STEPS_RESERVED, self.spec.step_capacity)
        first = self._cursor.step
        if first < oldest:  # lapped; after repeated laps start further ahead
            first = min(oldest + self.spec.step_capacity * attempt // (2 * _ATTEMPTS), published - 1)
        records = self._records(segment, first, min(published, first + MAX_STEPS_PER_READ))
        lost = self._lost(segment, records)
        wanted = self._bounded(records[lost:])
        if not wanted:
            self._skip(records)
            return None
        rows, meta, spans = self._copy(segment, wanted)
        futex.fence()
        raced = self._lost(segment, wanted)
        self._stats.raced_steps += raced
        if raced == len(wanted):
            self._skip(wanted)
            return None
        return self._deliver(wanted[raced:], wanted[0], rows, meta, spans)

    def _read_one(self, segment: Segment) -> StepBatch | None:
        """Fast path for the usual case of exactly one new step and none lost. Returns None if the full path is needed."""
        cursor, spec, words = self._cursor, self.spec, segment.words
        place = cursor.step % spec.step_capacity * STEP_STRUCT.size
        r = _Record._make(STEP_STRUCT.unpack_from(segment.steps, place))
        if r.seq != cursor.step + 1 or r.first_row != cursor.row or r.dropped_total - r.dropped_rows != cursor.dropped:
            return None
        if r.n_rows > spec.row_capacity or r.n_spans > spec.span_capacity:
            return None
        rows, meta, spans = self._copy(segment, [r])
        futex.fence()
        rows_reserved, spans_reserved = words[Word.ROWS_RESERVED], words[Word.SPANS_RESERVED]
        if (
            words[Word.STEPS_RESERVED] - spec.step_capacity > cursor.step
            or not rows_reserved - spec.row_capacity <= r.first_row <= rows_reserved - r.n_rows
            or not spans_reserved - spec.span_capacity <= r.first_span <= spans_reserved - r.n_spans
        ):
            return None
        return self._deliver([r], r, rows, meta, spans)

    def _records(self, segment: Segment, first: int, stop: int) -> list[_Record]:
        """Return those of the step records `first .. stop - 1` that were not overwritten during the copy, validated."""
        copied = _bytes_out(segment.steps, STEP_STRUCT.size, first, stop - first)
        futex.fence()
        gone = max(0, _low(segment, Word.STEPS_RESERVED, self.spec.step_capacity) - first)
        records = [_Record._make(fields) for fields in STEP_STRUCT.iter_unpack(copied[gone * STEP_STRUCT.size :])]
        if records:
            self._check(segment, first + gone, records)
        return records

    def _check(self, segment: Segment, first: int, records: list[_Record]) -> None:
        """Raise RingError unless the records are consecutive and within the ring's capacities and reservations."""
        head = records[0]
        expected = (first + 1, head.first_row, head.first_span, head.dropped_total - head.dropped_rows)
        for r in records:
            found = (r.seq, r.first_row, r.first_span, r.dropped_total - r.dropped_rows)
            if found != expected or r.n_rows > self.spec.row_capacity or r.n_spans > self.spec.span_capacity:
                raise self._damaged(f"the record of step {expected[0]} says {r}, expected it to begin with {expected}")
            expected = (r.seq + 1, r.first_row + r.n_rows, r.first_span + r.n_spans, r.dropped_total)
        words = segment.words
        if expected[1] > words[Word.ROWS_RESERVED] or expected[2] > words[Word.SPANS_RESERVED]:
            raise self._damaged(f"step {expected[0] - 1} has rows or spans that were never reserved")

    def _damaged(self, what: str) -> RingError:
        return RingError(f"{self.name}: {what}: the ring is damaged; restart the engine")

    def _lost(self, segment: Segment, records: list[_Record]) -> int:
        """Return how many of the records, from the oldest, have rows or spans that are no longer in the ring."""
        row = _low(segment, Word.ROWS_RESERVED, self.spec.row_capacity)
        span = _low(segment, Word.SPANS_RESERVED, self.spec.span_capacity)
        return max(bisect_left(records, row, key=_first_row), bisect_left(records, span, key=_first_span))

    def _bounded(self, records: list[_Record]) -> list[_Record]:
        """Return the leading records that one call may copy: at most 32 MiB, but at least one record."""
        if not records:
            return records
        limit = records[0].first_row + MAX_BYTES_PER_READ // self.spec.row_bytes
        return records[: max(1, bisect_right(records, limit, key=_row_end))]

    def _copy(self, segment: Segment, records: list[_Record]) -> tuple[np.ndarray, np.ndarray, bytes]:
        """Copy the rows, labels and encoded span records of consecutive steps."""
        first, last = records[0], records[-1]
        row, n_rows = first.first_row, _row_end(last) - first.first_row
        n_spans = last.first_span + last.n_spans - first.first_span
        spans = _bytes_out(segment.spans, SPAN_STRUCT.size, first.first_span, n_spans)
        return _copy_out(segment.rows, row, n_rows), _copy_out(segment.meta, row, n_rows).view(ROW_META), spans

    def _deliver(
        self, intact: list[_Record], copied: _Record, rows: np.ndarray, meta: np.ndarray, spans: bytes
    ) -> StepBatch:
        """Make a batch of the intact tail of the data copied from step `copied` on, and advance cursor and counts."""
        row = intact[0].first_row - copied.first_row
        if row:
            rows, meta = rows[row:], meta[row:]
        steps = self._steps(intact, rows, meta, self._decode(spans, intact[0].first_span - copied.first_span))
        self._move(intact)
        (missed_steps, missed_rows), self._gap = self._gap, (0, 0)
        self._stats.steps += len(steps)
        self._stats.rows += len(rows)
        return StepBatch(steps, rows, meta, missed_steps, missed_rows)

    def _decode(self, raw: bytes, first: int) -> list[Span]:
        """Decode the spans from index `first` on. Earlier ones may be torn."""
        return [self._span(*fields) for fields in SPAN_STRUCT.iter_unpack(raw[first * SPAN_STRUCT.size :])]

    def _span(
        self, position: int, n: int, offset: int, flags: int, n_prompt: int, length: int, _: int, request: bytes
    ) -> Span:
        try:
            if length > MAX_REQUEST_ID:
                raise ValueError(f"its length is {length}, at most {MAX_REQUEST_ID} fit")
            name = request[:length].decode()
        except ValueError as error:
            raise self._damaged(f"a span's request id cannot be read ({error})") from error
        return Span(name, position, n, offset, _SPAN_FLAGS[flags & 15], n_prompt)

    def _steps(self, records: list[_Record], rows: np.ndarray, meta: np.ndarray, spans: list[Span]) -> list[StepRecord]:
        row, span = records[0].first_row, records[0].first_span
        steps = []
        for r in records:
            owned = tuple(spans[r.first_span - span : r.first_span - span + r.n_spans])
            if any(s.offset + s.n_rows > r.n_rows + r.dropped_rows for s in owned):
                raise self._damaged(f"a span of step {r.number} reaches past its {r.n_rows + r.dropped_rows} rows")
            flags = _STEP_FLAGS[r.flags & 7]
            begin, end = r.first_row - row, r.first_row - row + r.n_rows
            mine = (meta, rows) if r.n_rows == len(rows) else (meta[begin:end], rows[begin:end])
            times = PassTimes._make(r[_TIMES_FROM:])
            found = StepRecord(r.number, r.time_ns, r.generation, owned, *mine, flags, r.dropped_rows, r.weights, times)
            steps.append(found)
        return steps

    # -- accounting: every step and row is counted once, as read or as missed --

    def _skip(self, records: list[_Record]) -> None:
        """Count these records, and everything before them, as missed."""
        if records:
            self._move(records)
            self._miss(len(records), self._cursor.row - records[0].first_row)

    def _move(self, records: list[_Record]) -> None:
        """Move the cursor past the records. Steps and rows between it and the first record count as missed."""
        first, last, cursor = records[0], records[-1], self._cursor
        if first.first_row < cursor.row or last.dropped_total < cursor.dropped:
            raise self._damaged(f"step {first.number} begins at row {first.first_row}, after row {cursor.row}")
        self._miss(first.seq - 1 - cursor.step, first.first_row - cursor.row)
        self._stats.dropped_rows += last.dropped_total - cursor.dropped
        self._cursor = _Cursor(last.seq, _row_end(last), last.dropped_total)

    def _miss(self, steps: int, rows: int) -> None:
        self._stats.missed_steps += steps
        self._stats.missed_rows += rows
        self._gap = (self._gap[0] + steps, self._gap[1] + rows)

    def _origin(self, segment: Segment, from_oldest: bool) -> _Cursor:
        """Return the cursor at which reading begins. Steps overwritten before that do not count as missed."""
        self._cursor = _Cursor()
        for _ in range(100):
            published = self._published(segment)
            if published == 0:
                return _Cursor()
            oldest = _low(segment, Word.STEPS_RESERVED, self.spec.step_capacity)
            first = min(oldest if from_oldest else published - 1, published - 1)
            records = self._records(segment, first, published)
            lost = self._lost(segment, records) if from_oldest else len(records)
            if records:
                return _cursor_at(records, lost)
        raise RingError(f"{self.name}: the writer laps its ring too fast to attach: make step_capacity larger")


def _cursor_at(records: list[_Record], index: int) -> _Cursor:
    """Return the cursor before record `index`, or after the last record if `index` is their number."""
    if index == len(records):
        last = records[-1]
        return _Cursor(last.seq, _row_end(last), last.dropped_total)
    record = records[index]
    return _Cursor(record.seq - 1, record.first_row, record.dropped_total - record.dropped_rows)


def _low(segment: Segment, reserved: int, capacity: int) -> int:
    """Return the oldest index that the writer has not reserved for overwriting."""
    return int(max(0, segment.words[reserved] - capacity))


def _copy_out(ring: np.ndarray, start: int, count: int) -> np.ndarray:
    """Copy the records `start .. start + count - 1` of a circular array, in at most two slices."""
    begin = start % len(ring)
    head = len(ring) - begin
    if count <= head:
        return ring[begin : begin + count].copy()
    copy = np.empty((count, *ring.shape[1:]), ring.dtype)
    copy[:head], copy[head:] = ring[begin:], ring[: count - head]
    return copy


def _bytes_out(ring: memoryview, size: int, start: int, count: int) -> bytes:
    """Copy records of `size` bytes each out of a circular buffer, likewise."""
    begin = start * size % len(ring)
    head = min(count * size, len(ring) - begin)
    copy = ring[begin : begin + head].tobytes()
    return copy if head == count * size else copy + ring[: count * size - head].tobytes()
