"""The plain packet stream: a file, or a pipe, of named lumps of bytes, for interchange with small tools.

    packet  =  name length u16 | data length u32 | name, UTF-8 | data        both lengths in network order (`!HI`)

The form has no place for shapes and dtypes, so our streams say them in packets of their own, which a reader who does not know
them can skip:

    actscope/header                              first; JSON: sites with dtype and width, the model, the grammar's version
    actscope/span                                JSON: whose rows come next, and their labels
    <site>/<request>/<first position>            the rows of that span at one site: [rows, width], C order, little-endian
    actscope/request                             JSON: a request has ended

A `<site>` and a `<request>` are percent-encoded (RFC 3986, "/" too), so that the name splits at "/". Position `p` is decimal; row
`i` of the packet is position `p + i`. A span's packets follow it before the next span, one for each site that has its rows.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

import msgspec

from actscope.errors import RecordingError

HEAD = struct.Struct("!HI")
MAX_NAME = 0xFFFF
MAX_DATA = 0xFFFFFFFF

HEADER, SPAN, REQUEST = "actscope/header", "actscope/span", "actscope/request"
VERSION = 1
_PIECE = 1 << 20


class SiteForm(msgspec.Struct, frozen=True):
    """How the rows of one site lie in their packets."""

    dtype: str
    width: int


class StreamHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first packet of a stream of ours."""

    format: str = "actscope-packets"
    version: int = VERSION
    byte_order: str = "little"
    sites: dict[str, SiteForm]
    model: dict[str, object] = {}
    recording: str = ""
    texts: dict[str, str] = {}


class SpanLabels(msgspec.Struct, frozen=True, kw_only=True):
    """Labels of the `rows` rows that come next: positions `position ..` of one request, computed in one step."""

    request: str
    position: int
    rows: int
    step: int
    time_ns: int
    n_prompt: int
    token_ids: list[int]
    flags: list[int]


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A request has ended; `present` positions are known of (the last one's token may never have been computed)."""

    request: str
    present: int = 0
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class PacketName:
    """What a rows packet's name says."""

    site: str
    request: str
    position: int

    @property
    def name(self) -> str:
        return f"{quote(self.site, safe='')}/{quote(self.request, safe='')}/{self.position}"

    @classmethod
    def parse(cls, name: str) -> PacketName | None:
        """The place, or None for a name of another form."""
        parts = name.split("/")
        if len(parts) != 3 or not (parts[2].isascii() and parts[2].isdecimal()) or len(parts[2]) > 18 or not parts[0]:
            return None
        return cls(unquote(parts[0]), unquote(parts[1]), int(parts[2]))


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; `offset` is where it begins in its stream."""

    offset: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One packet's place in a file: its data are the `length` bytes at `begin`."""

    offset: int
    name: str
    begin: int
    length: int


class PacketWriter:
    """Writes packets to a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, name: str, data: bytes | memoryview) -> None:
        """One packet. Raises RecordingError when name or data are longer than the form can say."""
        raw = name.encode()
        size = memoryview(data).nbytes
        if not 1 <= len(raw) <= MAX_NAME:
            raise RecordingError(
                f"packet {name[:60]!r}: a name has 1 to {MAX_NAME} bytes, this one {len(raw)}: use shorter site and request names"
            )
        if size > MAX_DATA:
            raise RecordingError(
                f"packet {name[:60]!r}: its {size} bytes are more than the form's {MAX_DATA}: split it"
            )
        self._file.write(HEAD.pack(len(raw), size) + raw)
        self._file.write(data)

    def record(self, name: str, record: msgspec.Struct) -> None:
        """One packet of ours whose data are JSON."""
        self.write(name, msgspec.json.encode(record))


def read_packets(file: BinaryIO, name: str = "packets") -> Iterator[Packet]:
    """All packets of a stream, each checked; `name` is what errors call the stream.

    Raises RecordingError, with the byte at which it happened, for a stream that ends within a packet and for a name that is not
    UTF-8. Memory follows the bytes that are really there, whatever a packet's head says.
    """
    offset = 0
    while head := _read(file, HEAD.size):
        title, length = _title(file, head, name, offset)
        data = _read(file, length)
        begin = offset + HEAD.size + len(title.encode())
        if len(data) < length:
            raise _cut(name, offset, f"{length} bytes of data for {title[:60]!r} at byte {begin}", len(data))
        yield Packet(offset, title, data)
        offset = begin + length


def scan_packets(file: BinaryIO, name: str = "packets") -> Iterator[Entry]:
    """The same without reading the data; for files that can be sought in."""
    size = _size(file, name)
    offset = 0
    while offset < size:
        file.seek(offset)
        title, length = _title(file, _read(file, HEAD.size), name, offset)
        begin = file.tell()
        if begin + length > size:
            raise _cut(name, offset, f"{length} bytes of data for {title[:60]!r} at byte {begin}", size - begin)
        yield Entry(offset, title, begin, length)
        offset = begin + length


def _title(file: BinaryIO, head: bytes, name: str, offset: int) -> tuple[str, int]:
    if len(head) < HEAD.size:
        raise _cut(name, offset, f"a head of {HEAD.size} bytes", len(head))
    title_length, length = cast(tuple[int, int], HEAD.unpack(head))
    if not title_length:
        raise RecordingError(
            f"{name}: the packet at byte {offset} has no name: not a packet stream, or damaged before this"
        )
    raw = _read(file, title_length)
    if len(raw) < title_length:
        raise _cut(name, offset, f"a name of {title_length} bytes", len(raw))
    try:
        return raw.decode(), length
    except UnicodeDecodeError as error:
        raise RecordingError(
            f"{name}: the name of the packet at byte {offset} is not UTF-8 ({error}): not a packet stream, or damaged before this"
        ) from error


def _cut(name: str, offset: int, expected: str, found: int) -> RecordingError:
    return RecordingError(f"{name}: the packet at byte {offset} is cut off: expected {expected}, found {found} bytes")


def _read(file: BinaryIO, length: int) -> bytes:
    """Up to `length` bytes, fewer only at the end."""
    pieces: list[bytes] = []
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _size(file: BinaryIO, name: str) -> int:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise RecordingError(f"{name}: expected a regular file")
    return found.st_size
