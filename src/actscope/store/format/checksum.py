"""The two checksums of a recording: our CRC32C, at memory speed, and the CRC32 that MCAP asks for."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from actscope.errors import MissingExtra

try:
    from crc32c import crc32c
except ImportError as error:
    raise MissingExtra("record", "crc32c") from error

Buffer = bytes | bytearray | memoryview


def crc32c_of(parts: Iterable[Buffer], start: int = 0) -> int:
    """CRC32C (Castagnoli, RFC 3720) of the parts one after the other; the lock of the interpreter is free meanwhile."""
    crc = start
    for part in parts:
        crc = crc32c(part, crc)
    return crc


def crc32_of(data: Buffer, start: int = 0) -> int:
    """CRC32 (IEEE 802.3), as MCAP uses it in attachments and summaries."""
    return zlib.crc32(data, start)
