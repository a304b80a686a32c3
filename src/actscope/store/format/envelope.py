"""Envelope of a segment: the prologue before its messages and the epilogue after them, both plain MCAP."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.errors import ActscopeError, MissingExtra, RecordingDamaged
from actscope.runtime.decoding import MALFORMED, decode_json
from actscope.store.format.checksum import Buffer, crc32_of, crc32c_of
from actscope.store.format.layout import (
    DATA_END,
    ENTRY,
    FOOTER,
    HEAD_BYTES,
    MAGIC,
    MESSAGE,
    RECORD,
    SEAL,
    Head,
    padding_after,
    record_bytes,
    seal_body,
)
from actscope.store.format.manifest import Manifest
from actscope.store.format.source import Source

try:
    from mcap import records
    from mcap.data_stream import ReadDataStream, RecordBuilder
    from mcap.exceptions import McapError
    from mcap.opcode import Opcode
except ImportError as error:
    raise MissingExtra("record", "mcap") from error

Ranges = tuple[tuple[int, int], ...]  # of message numbers, both ends included
LIBRARY = "actscope 1"
#: never changed within version 1: the summary repeats it, and `verify` compares the summary byte for byte
FRAME = (
    "offsets in the message: 4s ACTM, u8 version, u32 recording, 64s key, u64 number, u64 durable, u64 length, "
    "u32 crc32c, u32 crc32c"
)
SEAL_TOPIC = "actscope/seal"
ENCODING = "actscope"
INDEX_NAME, INDEX_TYPE = "index", "application/x-actscope-entries"
MAX_PROLOGUE = 256 << 20
#: exceptions that parsing untrusted bytes may raise, here and in the mcap package
_MALFORMED: tuple[type[Exception], ...] = (*MALFORMED, McapError)
_UNREADABLE: tuple[type[Exception], ...] = (*_MALFORMED, ActscopeError)
FOOTER_BYTES = RECORD.size + 20
DATA_END_BYTES = RECORD.size + 4


def _bytes(*many: records.McapRecord) -> bytes:
    builder: Any = RecordBuilder()
    for record in many:
        record.write(builder)
    return bytes(builder.end())


@dataclass(frozen=True, slots=True)
class Prologue:
    """All bytes of a segment before its first message, seal included."""

    segment: int
    first: int  # number of the first message
    time_ns: int
    lost: Ranges  # message numbers of this segment that a salvage lost
    manifest: str
    metadata: tuple[tuple[int, int, str], ...]  # offset, length, name of the metadata records
    data: bytes

    @classmethod
    def make(cls, manifest: Manifest, segment: int, first: int, time_ns: int, lost: Ranges = ()) -> Prologue:
        """Return the prologue of a new segment. `time_ns` is the time of its first message."""
        data = MAGIC + _bytes(
            records.Header("actscope", LIBRARY), records.Schema(1, FRAME.encode(), "text/plain", "actscope")
        )
        data += _bytes(*_channels(manifest.channels))
        places = []
        for name, text in _metadata(manifest, lost):
            record = _bytes(records.Metadata(name, {"json": text}))
            places.append((len(data), len(record), name))
            data += record
        body = seal_body(segment, first, crc32c_of((data,)), manifest.recording)
        pad = bytes(padding_after(len(data) + HEAD_BYTES + len(body)))
        head = Head(0, bytes(64), 0, 0, len(body), time_ns, crc32c_of((body, pad)))
        whole = data + head.write(manifest.recording, len(data)) + body + pad
        return cls(segment, first, time_ns, lost, manifest.text, tuple(places), whole)

    @classmethod
    def read(cls, source: Source) -> Prologue | None:
        """Return the prologue of a segment file, or None when any of its bytes is damaged."""
        try:
            return _read_prologue(source)
        except _UNREADABLE:
            return None


def _metadata(manifest: Manifest, lost: Ranges) -> list[tuple[str, str]]:
    found = [("manifest", manifest.text)]
    return [*found, ("lost", json.dumps(lost))] if lost else found


def _channels(names: Sequence[str]) -> list[records.Channel]:
    topics = [SEAL_TOPIC, *names]
    return [records.Channel(index, topic, ENCODING, {}, 1) for index, topic in enumerate(topics)]


def _read_prologue(source: Source) -> Prologue | None:
    if bytes(source.take(0, len(MAGIC))) != MAGIC:
        return None
    at, texts, places = len(MAGIC), {}, []
    while at < MAX_PROLOGUE:
        opcode, length = RECORD.unpack(source.take(at, RECORD.size))
        if opcode == MESSAGE:
            break
        size = RECORD.size + length
        if length > MAX_PROLOGUE:
            return None
        if opcode == Opcode.METADATA:
            record = records.Metadata.read(_stream(source.take(at + RECORD.size, length)))
            texts[record.name] = record.metadata["json"]
            places.append((at, size, record.name))
        at += size
    return _sealed(source, at, texts, tuple(places))


def _stream(data: Buffer) -> ReadDataStream:
    return ReadDataStream(BytesIO(data))


def _sealed(
    source: Source, at: int, texts: dict[str, str], places: tuple[tuple[int, int, str], ...]
) -> Prologue | None:
    manifest = Manifest(texts["manifest"])
    head = Head.read(source.take(at, HEAD_BYTES), manifest.recording, at)
    if head is None or head.channel or head.number or head.length != SEAL.size:
        return None
    end = at + record_bytes(at, head.length)
    whole = bytes(source.take(0, end))
    body = whole[at + HEAD_BYTES :]
    segment, first, crc, recording = SEAL.unpack_from(body)
    if len(whole) != end or crc32c_of((body,)) != head.body_crc or crc != crc32c_of((whole[:at],)):
        return None
    lost = decode_json(texts.get("lost", "[]"), Ranges, RecordingDamaged, "the list of lost messages")
    if recording != manifest.recording:
        return None
    return Prologue(segment, first, head.time_ns, lost, manifest.text, places, whole)


def epilogue(prologue: Prologue, channels: Sequence[str], entries: npt.NDArray[np.void], offset: int) -> bytes:
    """Return the end of a segment whose messages are `entries` and end at `offset`.

    Deterministic, so readers can verify it byte for byte. Consists of the attachment "index", DataEnd, and the summary that MCAP
    readers use. DataEnd's CRC is 0 ("not available"), since messages have their own.
    """
    attachment = records.Attachment(prologue.time_ns, prologue.time_ns, INDEX_NAME, INDEX_TYPE, entries.tobytes())
    data = _bytes(attachment)
    where = records.AttachmentIndex(
        offset, len(data), prologue.time_ns, prologue.time_ns, entries.nbytes, INDEX_NAME, INDEX_TYPE
    )
    data += _bytes(records.DataEnd(0))
    start = offset + len(data)
    groups: list[Sequence[records.McapRecord]] = [
        [records.Schema(1, FRAME.encode(), "text/plain", "actscope")],
        _channels(channels),
        [_statistics(prologue, len(channels) + 1, entries)],
        [where],
        [records.MetadataIndex(*place) for place in prologue.metadata],
    ]
    return data + _summary(groups, start)


def _summary(groups: list[Sequence[records.McapRecord]], start: int) -> bytes:
    summary, offsets = b"", []
    for group in groups:
        data = _bytes(*group)
        offsets.append(records.SummaryOffset(data[0], start + len(summary), len(data)))
        summary += data
    offset_start = start + len(summary)
    summary += _bytes(*offsets)
    footer = RECORD.pack(FOOTER, 20) + struct.pack("<QQ", start, offset_start)
    return summary + footer + crc32_of(footer, crc32_of(summary)).to_bytes(4, "little") + MAGIC


def _statistics(prologue: Prologue, channels: int, entries: npt.NDArray[np.void]) -> records.Statistics:
    counts = np.bincount(entries["channel"].astype(np.int64) + 1, minlength=channels)
    counts[0] = 1  # the seal
    times = np.append(entries["time_ns"], np.int64(prologue.time_ns))
    return records.Statistics(
        attachment_count=1,
        channel_count=channels,
        channel_message_counts={index: int(count) for index, count in enumerate(counts) if count},
        chunk_count=0,
        message_count=len(entries) + 1,
        message_end_time=int(times.max()),
        message_start_time=int(times.min()),
        metadata_count=len(prologue.metadata),
        schema_count=1,
    )


def read_index(source: Source, size: int) -> tuple[npt.NDArray[np.void], int] | None:
    """Return the entries and the epilogue's offset of a closed segment of `size` bytes, or None when its end is damaged.

    Checks MCAP's CRCs of the summary and the attachment, not the messages.
    """
    try:
        return _read_index(source, size)
    except _MALFORMED:
        return None


def _read_index(source: Source, size: int) -> tuple[npt.NDArray[np.void], int] | None:
    tail = FOOTER_BYTES + len(MAGIC)
    footer = bytes(source.take(max(size - tail, 0), tail))
    if len(footer) != tail or footer[-8:] != MAGIC or footer[: RECORD.size] != RECORD.pack(FOOTER, 20):
        return None
    start, _, crc = struct.unpack_from("<QQI", footer, RECORD.size)
    if not DATA_END_BYTES <= start <= size - tail:
        return None
    summary = bytes(source.take(start, size - tail - start))
    if crc32_of(footer[: RECORD.size + 16], crc32_of(summary)) != crc:
        return None
    if bytes(source.take(start - DATA_END_BYTES, DATA_END_BYTES)) != RECORD.pack(DATA_END, 4) + bytes(4):
        return None
    return _read_attachment(source, summary, start - DATA_END_BYTES)


def _read_attachment(source: Source, summary: bytes, end: int) -> tuple[npt.NDArray[np.void], int] | None:
    where = _find(summary, Opcode.ATTACHMENT_INDEX)
    if where is None:
        return None
    place = records.AttachmentIndex.read(_stream(where))
    if place.offset + place.length != end or place.data_size % ENTRY.itemsize or place.data_size > place.length:
        return None
    record = bytes(source.take(place.offset, place.length))
    if len(record) != place.length or crc32_of(record[RECORD.size : -4]).to_bytes(4, "little") != record[-4:]:
        return None
    if RECORD.unpack_from(record) != (Opcode.ATTACHMENT, place.length - RECORD.size):
        return None
    content = record[-4 - place.data_size : -4]
    return np.frombuffer(content, ENTRY), place.offset


def _find(summary: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + RECORD.size <= len(summary):
        opcode, length = RECORD.unpack_from(summary, at)
        at += RECORD.size
        if opcode == wanted:
            return summary[at : at + length]
        at += length
    return None
