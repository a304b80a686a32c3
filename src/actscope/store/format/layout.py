"""Layout of a segment: an MCAP file whose messages carry our own head.

    magic                      89 4D 43 41 50 30 0D 0A
    Header, Schema, Channels   all of them, in every segment            ┐
    Metadata "manifest"        the recording's manifest, word for word  │ prologue
    Metadata "lost"            only in what a salvage wrote             ┘
    Message, channel 0         the seal: CRC32C of every byte before it, segment number, first message number
    Message | padding ...      the recording
    Attachment "index"         ENTRY array of the messages              ┐
    DataEnd, summary, Footer, magic                                     ┘ epilogue, a function of all the above

One message, offsets from the start of its record, little-endian. Records begin on multiples of 8, so bodies do too.

    0    u8   opcode 0x05             ┐
    1    u64  length of what follows  │
    9    u16  channel: index + 1      │ MCAP
    11   u32  sequence: number mod 2**32
    15   u64  log time, ns            │
    23   u64  publish time, the same  ┘
    31   4s   magic "ACTM"            ┐
    35   u8   version, 1              │
    36   u32  recording id            │
    40   64s  key                     │
    104  u64  message number          │ ours
    112  u64  durable: the highest message number known to survive power loss when this was written
    120  u64  body length             │
    128  u32  CRC32C of body and padding
    132  u32  CRC32C of the 132 bytes before
    136  body, then zeros up to the next multiple of 8 of the file
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from actscope.store.format.checksum import Buffer, crc32c_of

MAGIC = b"\x89MCAP0\r\n"
MESSAGE, ATTACHMENT, DATA_END, FOOTER = 0x05, 0x09, 0x0F, 0x02
PADDING = 0x80  # first opcode that MCAP reserves for applications; MCAP readers skip it
RECORD = struct.Struct("<BQ")
HEAD = struct.Struct("<BQHIQQ4sBI64sQQQII")
HEAD_BYTES = HEAD.size
MCAP_BYTES = 22  # MCAP's own fields in a message record
KEY_BYTES = 64
ALIGN = 8
HEAD_MAGIC = b"ACTM"
VERSION = 1
MAX_MESSAGES = 1 << 18  # per segment; bounds the memory of its index to 26 MB
SEAL = struct.Struct("<IQIQ")  # segment, first number, CRC32C of the prologue, recording id

#: One message of a recording. `offset` is that of its record in the segment; `length` is its body's, in bytes.
ENTRY = np.dtype(
    [
        ("number", "<u8"),
        ("segment", "<u4"),
        ("channel", "<u2"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("time_ns", "<i8"),
        ("key", f"V{KEY_BYTES}"),
    ]
)
ENTRY_ROW = struct.Struct("<QIHQQq64s")  # the same layout, to pack one entry
assert HEAD_BYTES == 136 and ENTRY_ROW.size == ENTRY.itemsize


def segment_name(number: int) -> str:
    """Return a segment's file name, such as `segment-000001.mcap`."""
    return f"segment-{number:06d}.mcap"


def padding_after(end: int, multiple: int = ALIGN) -> int:
    """Return the bytes from `end` to the next multiple."""
    return -end % multiple


def record_bytes(offset: int, length: int) -> int:
    """Return the size of the record at `offset` with a body of `length` bytes, padding included."""
    end = offset + HEAD_BYTES + length
    return end + padding_after(end) - offset


@dataclass(frozen=True, slots=True)
class Head:
    """Message head: the 136 bytes before a body."""

    channel: int  # MCAP's: 0 is the seal, others are index + 1
    key: bytes
    number: int
    durable: int
    length: int
    time_ns: int
    body_crc: int

    def write(self, recording: int, offset: int) -> bytes:
        """Encode the head of a record that starts at `offset` of its file."""
        size = record_bytes(offset, self.length) - RECORD.size
        fields = (MESSAGE, size, self.channel, self.number & 0xFFFF_FFFF, self.time_ns, self.time_ns)
        ours = (HEAD_MAGIC, VERSION, recording, self.key, self.number, self.durable, self.length, self.body_crc)
        head = HEAD.pack(*fields, *ours, 0)[:-4]
        return head + crc32c_of((head,)).to_bytes(4, "little")

    @classmethod
    def read(cls, data: Buffer, recording: int, offset: int) -> Head | None:
        """Decode the head at the start of `data`, for a record at `offset` of its file. Return None if it is not valid."""
        if len(data) < HEAD_BYTES:
            return None
        head = bytes(data[:HEAD_BYTES])
        opcode, size, channel, sequence, time, _, magic, version, owner, key, number, durable, length, crc, own = (
            HEAD.unpack(head)
        )
        if opcode != MESSAGE or magic != HEAD_MAGIC or version != VERSION or owner != recording:
            return None
        if own != crc32c_of((head[:-4],)) or size != record_bytes(offset, length) - RECORD.size:
            return None
        if sequence != number & 0xFFFF_FFFF or time >> 63:
            return None
        return cls(channel, key, number, durable, length, time, crc)


def padding_record(offset: int, block: int) -> bytes:
    """Return a record of zeros that ends on a multiple of `block`, or b"" when `offset` is one."""
    gap = padding_after(offset, block)
    if gap == 0:
        return b""
    if gap < RECORD.size:
        gap += block
    return RECORD.pack(PADDING, gap - RECORD.size) + bytes(gap - RECORD.size)


def seal_body(segment: int, first: int, prologue_crc: int, recording: int) -> bytes:
    """Return the body of the seal, the first message of a segment."""
    return SEAL.pack(segment, first, prologue_crc, recording)
