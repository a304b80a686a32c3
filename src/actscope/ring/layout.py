"""Layout of a ring segment: header, counters, step records, span records, row labels, rows.

    0      header            HEADER: the writer's process, and the sizes that determine all other offsets
    256    counters          one 64-bit word per cache line, see `Word`
    4096   steps   [step_capacity]        STEP, 128 bytes
    ...    spans   [span_capacity]        SPAN, 152 bytes
    ...    meta    [row_capacity]         frames.ROW_META, 32 bytes
    ...    rows    [row_capacity, width]  float32, float16 or bfloat16 bits

Each area starts on a cache line. Records have monotonically increasing indices: record `i` is at slot `i % capacity`.

    state of step i, as a reader sees it              counters
    not published                                     steps_published <= i
    intact                                            reserved - capacity <= its first index, for steps, spans and rows
    overwritten, or being overwritten                 reserved - capacity >  its first index, for any of the three

All numbers are little-endian. docs/ring.md has the field tables and the reasons.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntFlag

import numpy as np

from actscope.errors import RingError
from actscope.frames import ROW_META

MAGIC = b"ACTSRING"
VERSION = 2  # 2: the times of a pass are in its step record
CACHE_LINE = 64
DATA_OFFSET = 4096

#: Maximum length of a request id in a span record, in bytes of UTF-8.
MAX_REQUEST_ID = 120

#: Upper bounds of a header's values, checked before anything is allocated.
MAX_ROWS = 1 << 31
MAX_WIDTH = 1 << 20
MAX_STEPS = 1 << 20
MAX_SPANS = 1 << 22
MAX_SEGMENT_BYTES = 1 << 42

#: Code in the header, and numpy dtype, of each row dtype. numpy has no bfloat16: such rows are uint16 arrays of its bits.
ROW_DTYPES: dict[str, tuple[int, np.dtype[np.generic]]] = {
    "float32": (1, np.dtype("<f4")),
    "float16": (2, np.dtype("<f2")),
    "bfloat16": (3, np.dtype("<u2")),
}


class Word:
    """Index of each counter, in 64-bit words from the start of the segment.

    These are plain integers: looking up an enum's member takes 0.25 µs in Python 3.11, and a step needs a dozen.
    """

    ROWS_RESERVED = 32
    SPANS_RESERVED = 40
    STEPS_RESERVED = 48
    STEPS_PUBLISHED = 56
    HEARTBEAT_NS = 64
    CLOSED = 72


class StepFlag(IntFlag):
    """Reason why a step has no rows in the ring although it had some."""

    OVERSIZE = 1  # more rows, or more spans, than the ring can hold at once
    NO_SCORES = 2  # the step had no frame of scores
    REFUSED = 4  # the rows or the spans were malformed; the writer logs the details


#: Flags of a step without such a problem.
NO_FLAGS = StepFlag(0)

STEP = np.dtype(
    [
        ("seq", "<u8"),
        ("number", "<u8"),
        ("time_ns", "<i8"),
        ("generation", "<u8"),
        ("first_row", "<u8"),
        ("first_span", "<u8"),
        ("dropped_total", "<u8"),
        ("n_rows", "<u4"),
        ("n_spans", "<u4"),
        ("dropped_rows", "<u4"),
        ("flags", "<u2"),
        ("weights", "<u2"),
        ("scheduled_ns", "<i8"),
        ("begun_ns", "<i8"),
        ("ended_ns", "<i8"),
        ("sampling_ns", "<i8"),
        ("sampled_ns", "<i8"),
        ("before_sampling_ns", "<i8"),
        ("before_sampled_ns", "<i8"),
    ]
)
#: Largest `weights` of a step; later versions are all stored as this one.
MAX_WEIGHTS = (1 << 16) - 1
#: The same record for `struct`, which packs a record ten times faster than numpy assigns one.
STEP_STRUCT = struct.Struct("<QQqQQQQIIIHH7q")

SPAN = np.dtype(
    [
        ("first_position", "<i8"),
        ("n_rows", "<u4"),
        ("offset", "<u4"),
        ("flags", "<u4"),
        ("n_prompt", "<u4"),
        ("request_bytes", "<u4"),
        ("reserved", "<u4"),
        ("request", f"V{MAX_REQUEST_ID}"),
    ]
)
SPAN_STRUCT = struct.Struct(f"<qIIIIII{MAX_REQUEST_ID}s")


def request_bytes(request: str) -> bytes:
    """Encode a request id for a span record. Engines call this when they admit a request.

    Args:
        request: The request's id.

    Returns:
        The id in UTF-8, at most `MAX_REQUEST_ID` bytes.

    Raises:
        RingError: The id is too long, or is not valid Unicode.
    """
    try:
        encoded = request.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RingError(f"request id {request!r} is not valid Unicode ({error.reason}): send one that is") from error
    if len(encoded) > MAX_REQUEST_ID:
        raise RingError(
            f"request id {request[:24]!r}… has {len(encoded)} bytes of UTF-8, a ring holds {MAX_REQUEST_ID}: shorten it"
        )
    return encoded


@dataclass(frozen=True, slots=True)
class RingSpec:
    """Sizes of a ring, fixed for its lifetime. Raises RingError if a value is out of range.

    Attributes:
        row_capacity: Rows kept before the oldest are overwritten. A step with more rows is published without them.
        width: Numbers per row: probe slots, or d_model.
        step_capacity: Steps kept.
        span_capacity: Spans kept; at least the largest batch.
        dtype: "float32", "float16" or "bfloat16" (stored as uint16 bits).
    """

    row_capacity: int
    width: int
    step_capacity: int
    span_capacity: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_range("row_capacity", self.row_capacity, MAX_ROWS)
        _check_range("width", self.width, MAX_WIDTH)
        _check_range("step_capacity", self.step_capacity, MAX_STEPS)
        _check_range("span_capacity", self.span_capacity, MAX_SPANS)
        if self.dtype not in ROW_DTYPES:
            raise RingError(f"ring: dtype must be one of {', '.join(ROW_DTYPES)}, found {self.dtype!r}")
        if self.segment_bytes > MAX_SEGMENT_BYTES:
            raise RingError(f"ring: {self.segment_bytes} bytes, at most {MAX_SEGMENT_BYTES} can be: make it smaller")

    @property
    def row_dtype(self) -> np.dtype[np.generic]:
        """Return the numpy dtype that carries the rows."""
        return ROW_DTYPES[self.dtype][1]

    @property
    def row_bytes(self) -> int:
        """Size of one row and its label, in bytes."""
        return ROW_META.itemsize + self.width * self.row_dtype.itemsize

    @property
    def spans_offset(self) -> int:
        """Return the offset of the span records, in bytes."""
        return _aligned(DATA_OFFSET + self.step_capacity * STEP.itemsize)

    @property
    def meta_offset(self) -> int:
        """Return the offset of the row labels, in bytes."""
        return _aligned(self.spans_offset + self.span_capacity * SPAN.itemsize)

    @property
    def rows_offset(self) -> int:
        """Return the offset of the rows, in bytes."""
        return _aligned(self.meta_offset + self.row_capacity * ROW_META.itemsize)

    @property
    def segment_bytes(self) -> int:
        """Return the size of the segment, in bytes."""
        return _aligned(self.rows_offset + self.row_capacity * self.width * self.row_dtype.itemsize)


_HEADER = struct.Struct("<8sII QQQQ QQQ IIIII xxxx Q")
_HEADER_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _HEADER_CRC.size


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a segment: written once, before the segment's name is published, and never changed."""

    spec: RingSpec
    pid: int
    pid_start: int
    pid_namespace: int
    created_ns: int

    def pack(self) -> bytes:
        """Return the bytes of the header. The last four are the CRC-32 of all others."""
        spec = self.spec
        body = _HEADER.pack(
            *(MAGIC, VERSION, DATA_OFFSET),
            *(self.pid, self.pid_start, self.pid_namespace, self.created_ns),
            *(spec.row_capacity, spec.step_capacity, spec.span_capacity),
            *(spec.width, ROW_DTYPES[spec.dtype][0], STEP.itemsize, SPAN.itemsize, ROW_META.itemsize),
            spec.segment_bytes,
        )
        return body + _HEADER_CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, raw: bytes, where: str) -> Header:
        """Parse and validate a header. Raises RingError, which names the segment `where` and the first mismatch."""
        if len(raw) < HEADER_BYTES:
            raise RingError(f"{where}: not a ring: {len(raw)} bytes, a header has {HEADER_BYTES}")
        (magic, version, data, pid, start, namespace, created, rows, steps, spans, width, code, *sizes, total) = (
            _HEADER.unpack_from(raw)
        )
        _expect(where, "magic", magic, MAGIC)
        if version != VERSION:
            raise RingError(
                f"{where}: a ring of version {version}, expected version {VERSION}: its engine runs another version of "
                "actscope; restart engine and reader with the same version"
            )
        _expect(where, "checksum", zlib.crc32(raw[: _HEADER.size]), *_HEADER_CRC.unpack_from(raw, _HEADER.size))
        _expect(where, "data offset", data, DATA_OFFSET)
        _expect(where, "record sizes", sizes, [STEP.itemsize, SPAN.itemsize, ROW_META.itemsize])
        spec = _spec_of(where, rows, width, steps, spans, code)
        _expect(where, "segment size", total, spec.segment_bytes)
        return cls(spec, pid, start, namespace, created)


def owner_of(raw: bytes) -> tuple[int, int, int] | None:
    """Return (pid, start time, pid namespace) of the writer from a header of any version; None if it is not a ring's header.

    These fields have the same place in all versions, so that engines do not sweep the rings of a living engine of another one.
    """
    if len(raw) < HEADER_BYTES or raw[: len(MAGIC)] != MAGIC:
        return None
    if zlib.crc32(raw[: _HEADER.size]) != _HEADER_CRC.unpack_from(raw, _HEADER.size)[0]:
        return None
    _, _, _, pid, start, namespace, *_ = _HEADER.unpack_from(raw)
    return pid, start, namespace


def _spec_of(where: str, rows: int, width: int, steps: int, spans: int, code: int) -> RingSpec:
    names = [name for name, (known, _) in ROW_DTYPES.items() if known == code]
    if not names:
        raise RingError(f"{where}: row dtype code {code} is unknown: the writer is of another version of actscope")
    try:
        return RingSpec(rows, width, steps, spans, names[0])
    except RingError as error:
        raise RingError(f"{where}: {error}") from error


def _expect(where: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise RingError(
            f"{where}: {what} is {found!r}, expected {expected!r}: this is not a ring of this version of actscope; "
            "restart engine and reader with the same version"
        )


def _check_range(name: str, value: int, cap: int) -> None:
    if not 1 <= value <= cap:
        raise RingError(f"ring: {name} must be between 1 and {cap}, found {value}")


def _aligned(offset: int) -> int:
    return -(-offset // CACHE_LINE) * CACHE_LINE
