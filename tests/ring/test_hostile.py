"""Whatever lies in shared memory, a reader answers with rows or RingError; it never crashes or allocates on trust."""

from __future__ import annotations

import os
import random
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.ring.reading import read_batch

from actscope.bench.ring import Stamper
from actscope.errors import RingError
from actscope.ring.host import RingReader, RingSpec, RingWriter
from actscope.ring.layout import DATA_OFFSET, HEADER_BYTES, SPAN_STRUCT, STEP_STRUCT, Word
from actscope.ring.segment import segment_path

SPEC = RingSpec(32, 8, 8, 8)


@pytest.fixture
def segment() -> Iterator[Path]:
    """A copy of a ring with five steps of four rows, to be damaged."""
    writer = RingWriter.create(SPEC)
    stamper = Stamper()
    for _ in range(5):
        writer.write(*stamper.make(4))
    copy = segment_path(f"actscope-{os.geteuid()}-{secrets.token_hex(8)}")
    copy.write_bytes(segment_path(writer.name).read_bytes())
    copy.chmod(0o600)
    writer.close()
    yield copy
    copy.unlink(missing_ok=True)


def overwrite(path: Path, offset: int, content: bytes | bytearray) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def read_all(path: Path) -> int:
    reader = RingReader.attach(path.name, from_oldest=True)
    try:
        rows = 0
        while (batch := reader.read()) is not None:
            rows += len(batch.rows)
        return rows
    finally:
        reader.close()


def test_an_undamaged_copy_can_be_read(segment: Path) -> None:
    assert read_all(segment) == 20


def test_every_flipped_bit_of_the_header_is_refused(segment: Path) -> None:
    original = segment.read_bytes()
    for bit in range(HEADER_BYTES * 8):
        damaged = bytearray(original[:HEADER_BYTES])
        damaged[bit // 8] ^= 1 << bit % 8
        overwrite(segment, 0, damaged)
        with pytest.raises(RingError):
            RingReader.attach(segment.name)


def as_version(path: Path, version: int) -> None:
    """Let a segment's header say that it is of another version of the layout, with a right checksum."""
    body = bytearray(path.read_bytes()[: HEADER_BYTES - 4])
    struct.pack_into("<I", body, 8, version)
    overwrite(path, 0, bytes(body) + struct.pack("<I", zlib.crc32(body)))


def test_a_ring_of_the_version_before_is_refused_with_what_to_do(segment: Path) -> None:
    """Version 1 had step records of 72 bytes, without the times of a pass."""
    as_version(segment, 1)
    with pytest.raises(RingError, match=r"a ring of version 1, expected version 2: .*; restart engine and reader"):
        RingReader.attach(segment.name)


def test_a_header_that_lies_with_a_right_checksum_is_refused_or_harmless(segment: Path) -> None:
    """Sizes that overflow, exceed the file, or are zero: checked before anything is mapped or allocated."""
    original, rng = segment.read_bytes()[:HEADER_BYTES], random.Random(1)
    lies = [0, 1, 2**31, 2**32 - 1]
    accepted = refused = 0
    for offset in range(8, HEADER_BYTES - 4, 4):
        for lie in [*lies, rng.getrandbits(32)]:
            body = bytearray(original[:-4])
            struct.pack_into("<I", body, offset, lie)
            overwrite(segment, 0, bytes(body) + struct.pack("<I", zlib.crc32(body)))
            try:
                assert read_all(segment) <= 20
                accepted += 1
            except RingError as error:
                assert segment.name in str(error)
                refused += 1
    assert accepted > 0 and refused > accepted


@pytest.mark.parametrize("word", ["ROWS_RESERVED", "SPANS_RESERVED", "STEPS_RESERVED", "STEPS_PUBLISHED"])
def test_counters_that_lie_give_few_rows_or_an_error(segment: Path, word: str) -> None:
    for lie in (0, 1, 3, 6, 9, 100, 2**31, 2**32, 2**63, 2**64 - 1):
        overwrite(segment, 8 * getattr(Word, word), struct.pack("<Q", lie))
        try:
            assert read_all(segment) <= 20
        except RingError as error:
            assert segment.name in str(error)


def test_records_and_rows_of_noise_never_crash_a_reader(segment: Path) -> None:
    original, rng = segment.read_bytes(), random.Random(2)
    for _ in range(400):
        area = DATA_OFFSET + rng.randrange(SPEC.meta_offset - DATA_OFFSET)
        overwrite(segment, 0, original)
        overwrite(segment, area, rng.randbytes(rng.choice([1, 4, 8])))
        try:
            assert read_all(segment) <= 20
        except RingError as error:
            assert segment.name in str(error)


def test_a_record_that_claims_more_rows_than_the_ring_has_is_refused(segment: Path) -> None:
    at = DATA_OFFSET + 2 * STEP_STRUCT.size + 56
    overwrite(segment, at, struct.pack("<I", 2**32 - 1))
    with pytest.raises(RingError, match="damaged"):
        read_all(segment)


def test_a_span_that_reaches_past_its_step_is_refused(segment: Path) -> None:
    overwrite(segment, SPEC.spans_offset + SPAN_STRUCT.size + 8, struct.pack("<I", 5))
    with pytest.raises(RingError, match="reaches past"):
        read_all(segment)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\xc3"])
def test_a_request_id_that_is_not_utf8_is_refused(segment: Path, content: bytes) -> None:
    overwrite(segment, SPEC.spans_offset + 24, struct.pack("<II", len(content), 0) + content)
    with pytest.raises(RingError, match="request id"):
        read_all(segment)


def test_a_counter_that_goes_back_under_a_reader_is_an_error_and_not_a_crash(segment: Path) -> None:
    reader = RingReader.attach(segment.name)
    overwrite(segment, 8 * Word.STEPS_PUBLISHED, struct.pack("<Q", 2))
    for call in (reader.read, lambda: reader.wait(1.0)):
        with pytest.raises(RingError, match="steps_published"):
            call()
    reader.close()


def test_a_file_of_the_wrong_size_is_refused(segment: Path) -> None:
    for size in (0, 10, HEADER_BYTES, DATA_OFFSET, SPEC.segment_bytes - 1, SPEC.segment_bytes + 1):
        os.truncate(segment, size)
        with pytest.raises(RingError):
            RingReader.attach(segment.name)


def test_a_segment_that_others_could_touch_is_refused(segment: Path) -> None:
    segment.chmod(0o640)
    with pytest.raises(RingError, match="0600"):
        RingReader.attach(segment.name)


def test_a_link_a_directory_and_a_pipe_are_refused(segment: Path) -> None:
    makers: tuple[Callable[[Path], None], ...] = (lambda p: p.symlink_to(segment), Path.mkdir, os.mkfifo)
    for make in makers:
        path = segment.with_name(f"actscope-{os.geteuid()}-{secrets.token_hex(8)}")
        make(path)
        try:
            with pytest.raises(RingError):
                RingReader.attach(path.name)
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize(
    "name", ["", "x", "../etc/passwd", "actscope-0-0123456789ABCDEF", "actscope-99999-" + "0" * 16]
)
def test_a_name_that_is_not_one_of_ours_is_refused(name: str) -> None:
    with pytest.raises(RingError, match="expected a name like"):
        RingReader.attach(name)


def test_rows_never_hold_a_view_of_shared_memory(segment: Path) -> None:
    reader = RingReader.attach(segment.name, from_oldest=True)
    batch, shared = read_batch(reader), reader._segment
    assert shared is not None
    assert not np.shares_memory(batch.rows, shared.rows) and not np.shares_memory(batch.meta, shared.meta)
    reader.close()
