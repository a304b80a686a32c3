"""Both ends of a ring in POSIX shared memory."""

from actscope.ring.layout import MAX_REQUEST_ID, RingSpec, StepFlag, request_bytes
from actscope.ring.reader import Batch, ReaderStats, RingReader, StepRecord
from actscope.ring.writer import RingWriter

__all__ = [
    "MAX_REQUEST_ID",
    "Batch",
    "ReaderStats",
    "RingReader",
    "RingSpec",
    "RingWriter",
    "StepFlag",
    "StepRecord",
    "request_bytes",
]
