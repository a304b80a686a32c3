"""Writer and reader of a ring in POSIX shared memory."""

from actscope.ring.layout import MAX_REQUEST_ID, RingSpec, StepFlag, request_bytes
from actscope.ring.reader import ReaderStats, RingReader, StepBatch, StepRecord
from actscope.ring.writer import RingWriter

__all__ = [
    "MAX_REQUEST_ID",
    "ReaderStats",
    "RingReader",
    "RingSpec",
    "RingWriter",
    "StepBatch",
    "StepFlag",
    "StepRecord",
    "request_bytes",
]
