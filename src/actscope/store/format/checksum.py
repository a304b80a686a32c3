"""Checksums of a recording: CRC32C for our own fields, and the CRC32 that MCAP requires."""

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
    """Return the CRC32C (Castagnoli, RFC 3720) of the concatenated parts. Releases the GIL."""
    crc = start
    for part in parts:
        crc = crc32c(part, crc)
    return crc


def crc32_of(data: Buffer, start: int = 0) -> int:
    """Return the CRC32 (IEEE 802.3) that MCAP uses in attachments and summaries."""
    return zlib.crc32(data, start)
