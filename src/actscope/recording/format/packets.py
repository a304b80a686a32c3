"""Packet stream: a file or pipe of named byte strings, for interchange with small tools.

    packet  =  name length u16 | data length u32 | name, UTF-8 | data        both lengths in network order (`!HI`)

The format has no field for shapes and dtypes. actscope writes them as extra packets, which other readers can skip:

    actscope/header                              first; JSON: sites with dtype and width, the model, the format version
    actscope/span                                JSON: request and labels of the rows in the next packets
    <site>/<request>/<first position>            rows of that span at one site: [rows, width], C order, little-endian
    actscope/request                             JSON: end of a request

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
    """dtype and width of one site's rows."""

    dtype: str
    width: int


class StreamHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First packet of an actscope stream."""

    format: str = "actscope-packets"
    version: int = VERSION
    byte_order: str = "little"
    sites: dict[str, SiteForm]
    model: dict[str, object] = {}
    recording: str = ""
    texts: dict[str, str] = {}


class SpanLabels(msgspec.Struct, frozen=True, kw_only=True):
    """Labels of the next `rows` rows: consecutive positions from `position` of one request, computed in one step."""

    request: str
    position: int
    rows: int
    step: int
    time_ns: int
    n_prompt: int
    token_ids: list[int]
    flags: list[int]


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """End of a request of `present` known positions. The last position may never have been computed."""

    request: str
    present: int = 0
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class PacketName:
    """Parsed name of a rows packet."""

    site: str
    request: str
    position: int

    @property
    def name(self) -> str:
        """Return the name that `parse` reads: `site/request/position`, the site and the request percent-encoded."""
        return f"{quote(self.site, safe='')}/{quote(self.request, safe='')}/{self.position}"

    @classmethod
    def parse(cls, name: str) -> PacketName | None:
        """Parse a name. Return None for a name of another form."""
        parts = name.split("/")
        if len(parts) != 3 or not (parts[2].isascii() and parts[2].isdecimal()) or len(parts[2]) > 18 or not parts[0]:
            return None
        return cls(unquote(parts[0]), unquote(parts[1]), int(parts[2]))


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet; `offset` is its byte offset in the stream."""

    offset: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """Location of a packet in a file: its data are the `length` bytes at `begin`."""

    offset: int
    name: str
    begin: int
    length: int


class PacketWriter:
    """Writer of packets to a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write one packet. Raises RecordingError when the name is empty, or name or data exceed the format's limits."""
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
        """Write one packet with JSON data."""
        self.write(name, msgspec.json.encode(record))


def read_packets(file: BinaryIO, name: str = "packets") -> Iterator[Packet]:
    """Iterate over the packets of a stream. `name` identifies the stream in errors.

    Allocates memory only for bytes that exist, regardless of the length in a packet's head.

    Raises:
        RecordingError: The stream ends within a packet, or a name is empty or not UTF-8. The message gives the byte offset.
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
    """Iterate over the packets of a regular file without reading their data. Errors are those of `read_packets`."""
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
    """Read `length` bytes; fewer only at the end of the file."""
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
