"""What goes into a ring comes out of it, once and in order, or is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ring.conftest import MakeRing
from support.ring.reading import read_batch

from actscope.bench.ring import Stamper, Verifier, stamps
from actscope.errors import RingClosed, RingError
from actscope.frames import ROW_META, SCORES, Frame, PassTimes, SinkStats, Span, SpanFlag, SplitFrame, Step
from actscope.ring.host import MAX_REQUEST_ID, RingReader, RingSpec, RingWriter, StepFlag, request_bytes
from actscope.ring.layout import SPAN, SPAN_STRUCT, STEP, STEP_STRUCT, Header
from actscope.ring.segment import segment_path

SPEC = RingSpec(64, 4, 16, 32)
#: First position, rows, and rows that the ring stores of one published step.
Published = tuple[int, int, int]


def a_step(number: int = 1, n: int = 3, request: str = "r") -> tuple[Step, list[Frame]]:
    meta = np.zeros(n, ROW_META)
    meta["position"] = np.arange(n)
    return Step(number, 7, (Span(request, 0, n),), meta), [Frame(SCORES, np.full((n, 4), number, np.float32))]


def test_a_step_comes_back_with_every_field(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    meta = np.zeros(3, ROW_META)
    meta["position"], meta["token_id"], meta["flags"] = [9, 10, 4], [-1, 5, 6], 3
    meta["span"], meta["step"] = [0, 0, 1], 2**60
    ended = SpanFlag.END | SpanFlag.ABORTED
    spans = (Span("ä-1", 9, 2, 0, SpanFlag.FIRST, 11), Span("b", 4, 1, 2), Span("c", 0, 0, 3, ended))
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    times = PassTimes(*range(2**62, 2**62 + 7))
    writer.write(
        Step(2**60, 12345, spans, meta, 6, 70_000, times), [Frame("layers.0", np.zeros(1)), Frame(SCORES, rows)]
    )
    (record,) = read_batch(reader).steps
    assert (record.number, record.time_ns, record.generation, record.spans) == (2**60, 12345, 6, spans)
    assert np.array_equal(record.meta, meta) and np.array_equal(record.rows, rows)
    assert (record.flags, record.dropped_rows, record.weights) == (StepFlag(0), 0, 65_535)
    assert record.times == times
    assert reader.read() is None


def test_every_flag_of_a_span_arrives(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    spans = tuple(Span(str(i), 0, 0, 0, SpanFlag(i)) for i in range(2 * max(SpanFlag)))
    writer.write(Step(1, 0, spans, np.zeros(0, ROW_META)), [])
    (record,) = read_batch(reader).steps
    assert record.spans == spans


def test_rows_in_column_blocks_lie_side_by_side(make_ring: MakeRing) -> None:
    writer, reader = make_ring(rows=4)
    for number in (1, 2, 3):  # the third goes around the end of the ring
        step, (frame,) = a_step(number)
        writer.write(step, [SplitFrame(SCORES, (np.asarray(frame.rows)[:, :1], np.asarray(frame.rows)[:, 1:]))])
        (record,) = read_batch(reader).steps
        assert np.array_equal(record.rows, frame.rows)


def test_what_was_read_stays_as_it_was_when_the_ring_moves_on(make_ring: MakeRing) -> None:
    writer, reader = make_ring(rows=4)
    writer.write(*a_step(1))
    record = read_batch(reader).steps[0]
    writer.write(*a_step(2))
    reader.close()
    assert (record.rows == 1).all() and record.rows.flags.writeable


def test_a_step_without_rows_carries_its_spans(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    span = Span("r", 0, 0, flags=SpanFlag.END)
    writer.write(Step(1, 0, (span,), np.zeros(0, ROW_META)), [])
    (record,) = read_batch(reader).steps
    assert record.spans == (span,) and record.rows.shape == (0, 4) and record.flags == 0


@pytest.mark.parametrize(("dtype", "given_dtype"), [("float16", "f4"), ("float32", "f8"), ("bfloat16", "u2")])
def test_rows_are_kept_in_the_type_of_the_ring(make_ring: MakeRing, dtype: str, given_dtype: str) -> None:
    writer, reader = make_ring(dtype=dtype)
    step, _ = a_step(1)
    writer.write(step, [Frame(SCORES, np.full((3, 4), 3, given_dtype))])
    rows = read_batch(reader).steps[0].rows
    assert rows.dtype == reader.spec.row_dtype and (rows == 3).all()


def test_a_reader_that_attaches_late_counts_nothing_from_before(make_ring: MakeRing) -> None:
    writer, _ = make_ring()
    for number in range(1, 40):
        writer.write(*a_step(number))
    late = RingReader.attach(writer.name)
    assert late.read() is None and late.stats().missed_rows == 0
    writer.write(*a_step(40))
    batch = read_batch(late)
    assert [s.number for s in batch.steps] == [40] and (batch.missed_steps, batch.missed_rows) == (0, 0)
    late.close()


def test_a_reader_from_the_oldest_gets_all_that_is_still_there(make_ring: MakeRing) -> None:
    writer, _ = make_ring(rows=16, steps=16)
    for number in range(1, 40):
        writer.write(*a_step(number))
    oldest = RingReader.attach(writer.name, from_oldest=True)
    batch = read_batch(oldest)
    assert [s.number for s in batch.steps] == [35, 36, 37, 38, 39]  # 16 rows hold five steps of three
    assert oldest.stats().missed_steps == 0
    oldest.close()


def test_a_slow_reader_counts_exactly_what_it_missed(make_ring: MakeRing) -> None:
    writer, reader = make_ring(rows=16, steps=100, spans=100)
    for number in range(1, 41):
        writer.write(*a_step(number))
    batch = read_batch(reader)
    assert [s.number for s in batch.steps] == [36, 37, 38, 39, 40]
    assert (batch.missed_steps, batch.missed_rows) == (35, 105)
    stats = reader.stats()
    assert (stats.steps, stats.rows, stats.missed_steps, stats.missed_rows) == (5, 15, 35, 105)


@pytest.mark.parametrize(("rows", "steps", "spans"), [(1000, 5, 1000), (1000, 1000, 5), (15, 1000, 1000)])
def test_whichever_area_laps_first_the_account_is_exact(make_ring: MakeRing, rows: int, steps: int, spans: int) -> None:
    writer, reader = make_ring(rows=rows, steps=steps, spans=spans)
    for number in range(1, 101):
        writer.write(*a_step(number))
    assert len(read_batch(reader).steps) == 5
    assert (reader.stats().missed_steps, reader.stats().missed_rows) == (95, 285)


def test_more_than_one_read_holds_comes_in_several(make_ring: MakeRing) -> None:
    writer, reader = make_ring(rows=10_000, steps=5000, spans=5000)
    for number in range(1, 5001):
        writer.write(*a_step(number, 1))
    assert [len(read_batch(reader).steps), len(read_batch(reader).steps), reader.read()] == [4096, 904, None]


def test_an_oversize_step_is_published_without_rows_and_counted(
    make_ring: MakeRing, caplog: pytest.LogCaptureFixture
) -> None:
    writer, reader = make_ring(rows=8)
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            writer.write(*a_step(number, 9))
    writer.write(*a_step(3, 8))
    big, also, fits = read_batch(reader).steps
    assert (big.flags, big.dropped_rows, len(big.rows), big.spans[0].n_rows) == (StepFlag.OVERSIZE, 9, 0, 9)
    assert also.dropped_rows == 9 and len(fits.rows) == 8
    assert writer.stats() == SinkStats(3, 8, 18) and reader.stats().dropped_rows == 18
    assert len(caplog.records) == 1  # said once, counted always


def test_rows_dropped_by_the_writer_are_counted_also_in_steps_that_were_missed(make_ring: MakeRing) -> None:
    writer, reader = make_ring(rows=8, steps=4)
    for number in range(1, 11):
        writer.write(*a_step(number, 9))
    reader.read()
    assert (reader.stats().missed_steps, reader.stats().dropped_rows) == (6, 90)


def test_more_spans_than_the_ring_holds_is_an_oversize_step(make_ring: MakeRing) -> None:
    writer, reader = make_ring(spans=2)
    step = Step(1, 0, tuple(Span(str(i), 0, 1, i) for i in range(3)), np.zeros(3, ROW_META))
    writer.write(step, [Frame(SCORES, np.zeros((3, 4), np.float32))])
    (record,) = read_batch(reader).steps
    assert (record.flags, record.spans, record.dropped_rows) == (StepFlag.OVERSIZE, (), 3)


BAD_FRAMES: dict[str, Callable[[Step], tuple[Step, list[Frame]]]] = {
    "wrong width": lambda step: (step, [Frame(SCORES, np.zeros((3, 5), np.float32))]),
    "wrong length": lambda step: (step, [Frame(SCORES, np.zeros((2, 4), np.float32))]),
    "not numbers": lambda step: (step, [Frame(SCORES, object())]),  # type: ignore[arg-type]
    "complex": lambda step: (step, [Frame(SCORES, np.zeros((3, 4), np.complex64))]),
    "long request": lambda step: (Step(1, 0, (Span("x" * 121, 0, 3),), step.meta), a_step()[1]),
    "span past the end": lambda step: (Step(1, 0, (Span("x", 0, 4),), step.meta), a_step()[1]),
    "negative rows": lambda step: (Step(1, 0, (Span("x", 0, -1),), step.meta), a_step()[1]),
    "foreign meta": lambda step: (Step(1, 0, step.spans, np.zeros(3)), a_step()[1]),
}


@pytest.mark.parametrize("bad", BAD_FRAMES)
def test_a_malformed_step_never_raises_on_the_models_thread_and_is_counted(make_ring: MakeRing, bad: str) -> None:
    writer, reader = make_ring()
    writer.write(*BAD_FRAMES[bad](a_step()[0]))
    writer.write(*a_step(2))
    refused, whole = read_batch(reader).steps
    assert (refused.flags, refused.dropped_rows, len(refused.rows)) == (StepFlag.REFUSED, 3, 0)
    assert len(whole.rows) == 3 and writer.stats() == SinkStats(2, 3, 3)


def test_a_step_without_scores_says_so(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    writer.write(a_step()[0], [Frame("layers.3", np.zeros((3, 64), np.float32))])
    (record,) = read_batch(reader).steps
    assert (record.flags, record.dropped_rows, len(record.spans)) == (StepFlag.NO_SCORES, 3, 1)


def test_an_impossible_step_closes_the_ring_instead_of_raising(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    writer.write(a_step(-1)[0], a_step()[1])
    writer.write(*a_step(2))
    assert not reader.wait(5.0) and not reader.writer_alive() and writer.stats() == SinkStats(0, 0, 6)


@pytest.mark.parametrize("request_id", ["", "x" * MAX_REQUEST_ID, "ü" * 60, "nul\0", "\0", "🦉" * 30])
def test_any_request_id_that_fits_comes_back(make_ring: MakeRing, request_id: str) -> None:
    writer, reader = make_ring()
    writer.write(*a_step(request=request_id))
    assert read_batch(reader).steps[0].spans[0].request == request_id


@pytest.mark.parametrize("request_id", ["x" * 121, "ü" * 61, "\ud800"])
def test_a_request_id_that_does_not_fit_is_refused_at_admission(request_id: str) -> None:
    with pytest.raises(RingError, match="request id"):
        request_bytes(request_id)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 9),
    steps=st.integers(1, 5),
    spans=st.integers(1, 5),
    script=st.lists(st.one_of(st.just("read"), st.integers(0, 10)), max_size=60),
)
def test_at_every_alignment_reads_are_what_a_model_in_memory_says(
    rows: int, steps: int, spans: int, script: list[str | int]
) -> None:
    writer = RingWriter.create(RingSpec(rows, 2, steps, spans))
    reader = RingReader.attach(writer.name)
    try:
        _follow(writer, reader, rows, min(steps, spans), [*script, "read"])
    finally:
        reader.close()
        writer.close()


def _follow(
    writer: RingWriter, reader: RingReader, row_capacity: int, step_capacity: int, script: Sequence[str | int]
) -> None:
    """Write steps of so many rows, and read at each "read": every read is compared with a list in memory."""
    stamper, cursor = Stamper(2), 0
    published: list[Published] = []
    for what in script:
        if isinstance(what, int):
            first = stamper.row
            writer.write(*stamper.make(what))
            published.append((first, what, what if what <= row_capacity else 0))
            continue
        kept = _intact(published, cursor, row_capacity, step_capacity)
        batch = reader.read()
        found = [] if batch is None else batch.steps
        assert [(s.spans[0].first_position, s.spans[0].n_rows, len(s.rows)) for s in found] == kept
        for step in found:
            positions = np.arange(step.spans[0].first_position, step.spans[0].first_position + len(step.rows))
            assert (step.rows == stamps(positions, 2)).all() and (step.meta["position"] == positions).all()
        cursor = len(published)
        stats = reader.stats()
        assert stats.steps + stats.missed_steps == len(published)
        assert stats.rows + stats.missed_rows == sum(stored for *_, stored in published) == writer.stats().rows
        assert stats.dropped_rows == writer.stats().dropped_rows


def _intact(published: Sequence[Published], cursor: int, row_capacity: int, step_capacity: int) -> list[Published]:
    """The steps after `cursor` that a ring of that size still holds: those that start within a capacity of the end."""
    starts = np.cumsum([0, *(stored for *_, stored in published)])
    low = max(0, starts[-1] - row_capacity)
    begin = max(cursor, len(published) - step_capacity)
    return [published[i] for i in range(begin, len(published)) if starts[i] >= low]


def test_records_for_struct_and_for_numpy_are_the_same_bytes() -> None:
    assert (STEP_STRUCT.size, SPAN_STRUCT.size) == (STEP.itemsize, SPAN.itemsize) == (128, 152)
    values = tuple(range(1, 20))
    assert np.frombuffer(STEP_STRUCT.pack(*values), STEP)[0].item() == values
    span = np.frombuffer(SPAN_STRUCT.pack(-1, 2, 3, 4, 5, 3, 0, b"abc"), SPAN)[0].item()
    assert span[:7] == (-1, 2, 3, 4, 5, 3, 0) and span[7][:3] == b"abc"


def test_the_documented_layout_is_the_real_one() -> None:
    spec = RingSpec(row_capacity=10, width=3, step_capacity=5, span_capacity=7)
    assert (spec.spans_offset, spec.meta_offset, spec.rows_offset, spec.segment_bytes) == (4736, 5824, 6144, 6272)
    assert len(Header(spec, 1, 2, 3, 4).pack()) <= 256


@pytest.mark.parametrize("bad", [{"row_capacity": 0}, {"width": 1 << 21}, {"step_capacity": -1}, {"dtype": "int8"}])
def test_a_spec_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RingError):
        RingSpec(**{"row_capacity": 8, "width": 4, "step_capacity": 4, "span_capacity": 4, **bad})


def test_a_ring_that_does_not_fit_is_refused_and_leaves_nothing(make_ring: MakeRing) -> None:
    with pytest.raises(RingError, match="no room"):
        RingWriter.create(RingSpec(1 << 31, 256, 16, 16))


def test_a_reader_drains_a_ring_that_was_closed_and_unlinked(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    writer.write(*a_step(1))
    writer.close()
    assert not segment_path(writer.name).exists()
    assert reader.wait(5.0) and [s.number for s in read_batch(reader).steps] == [1]
    assert not reader.wait(5.0) and reader.read() is None and not reader.writer_alive()
    with pytest.raises(RingError):
        RingReader.attach(writer.name)


def test_steps_after_close_are_counted_as_dropped(make_ring: MakeRing) -> None:
    writer, _ = make_ring()
    writer.close()
    writer.close()
    writer.write(*a_step(1))
    assert writer.stats() == SinkStats(0, 0, 3)


def test_a_closed_reader_says_so(make_ring: MakeRing) -> None:
    _, reader = make_ring()
    reader.close()
    reader.close()
    assert not reader.wait(1.0) and not reader.writer_alive()
    with pytest.raises(RingClosed):
        reader.read()


def test_stamped_rows_that_are_wrong_are_noticed(make_ring: MakeRing) -> None:
    """The verifier that the stress tests and the bench lean on is not blind."""
    writer, reader = make_ring(rows=64, width=8)
    stamper, verifier = Stamper(8), Verifier()
    step, frames = stamper.make(5)
    frames[0].rows[2, 7] += 1
    writer.write(step, frames)
    verifier.take(read_batch(reader))
    stamper.make(5)
    writer.write(*stamper.make(5))
    verifier.take(read_batch(reader))
    assert (verifier.torn_rows, verifier.miscounted_gaps) == (1, 1)
