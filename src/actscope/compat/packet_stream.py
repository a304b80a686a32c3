"""The older framework's packet stream: packets of a name and compressed bytes.

The packets are those of `actscope.recording.format.packets`. Here each packet's data is an lz4 frame, a zstd frame or plain, all
alike in one stream, which does not say which: the reader has to be told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import BinaryIO

import numpy as np

from actscope.codecs.coding.compressors import unzstd, zstandard
from actscope.errors import CodecError, MissingExtra, RecordingError, SettingsError
from actscope.recording.format.packets import Entry, PacketWriter, scan_packets
from actscope.runtime.decoding import as_own_error
from actscope.runtime.publish import private_opener
from actscope.runtime.regular_files import open_regular

COMPRESSIONS = ("lz4", "zstd", "none")
#: Largest packet that is read, compressed and plain, in bytes.
MAX_PACKET_BYTES = 1 << 30
_LZ4_LEVEL, _ZSTD_LEVEL = 1, 3


class PacketStreamWriter:
    """Writer of a packet stream. A context manager, or call `close`.

    Args:
        path: The file. An existing one is replaced. Only its owner can read it.
        compression: lz4, zstd or none.

    Raises:
        SettingsError: The compression is unknown.
        RecordingError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], compression: str = "lz4") -> None:
        self._compression = _checked(compression)
        with _writing(path):
            self._file = open(path, "wb", opener=private_opener)  # noqa: SIM115  # closed by `close`
        self._path = path
        self._writer = PacketWriter(self._file)

    def write(self, name: str, data: bytes | memoryview | np.ndarray) -> None:
        """Compress and write one packet.

        Args:
            name: The name, usually of a module or site; 1 to 65,535 bytes of UTF-8.
            data: The bytes, or an array, whose values are written in C order.

        Raises:
            RecordingError: The name or the data is too long, or the file cannot be written.
        """
        raw = np.ascontiguousarray(data).tobytes() if isinstance(data, np.ndarray) else bytes(data)
        with _writing(self._path):
            self._writer.write(name, _packed(raw, self._compression))

    def close(self) -> None:
        """Close the file. Idempotent. Raises RecordingError if its last bytes could not be written."""
        with _writing(self._path):
            self._file.close()

    def __enter__(self) -> PacketStreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_packet_stream(
    path: str | os.PathLike[str], compression: str = "lz4", max_packet_bytes: int = MAX_PACKET_BYTES
) -> Iterator[tuple[str, bytes]]:
    """Iterate over the packets of a stream, decompressed.

    Args:
        path: The file.
        compression: lz4, zstd or none: what it was written with.
        max_packet_bytes: Largest packet to accept, compressed and plain. Nothing larger is allocated.

    Yields:
        Name and bytes of each packet.

    Raises:
        SettingsError: The compression is unknown.
        RecordingError: The stream is cut off or damaged, was written with another compression, or a packet is too large. The
            message gives the byte offset.
    """
    _checked(compression)
    with closing(opened(path)) as file:
        for entry in scan_packets(file, str(path)):
            where = f"{path}: the packet {entry.name[:60]!r} at byte {entry.offset}"
            yield entry.name, _content(file, entry, compression, max_packet_bytes, where)


def unpack_packet_stream(source: str | os.PathLike[str], to: str | os.PathLike[str], compression: str = "lz4") -> int:
    """Write a stream again without compression, for `actscope import`.

    Args:
        source: The stream.
        to: The file to write. An existing one is replaced.
        compression: lz4, zstd or none: what the stream was written with.

    Returns:
        The number of packets.

    Raises:
        SettingsError: The compression is unknown, or both are the same file.
        RecordingError: As `read_packet_stream` and `PacketStreamWriter`.
    """
    if Path(source).absolute() == Path(to).absolute():
        raise SettingsError(f"{to}: is the stream itself; choose another file")
    packets = 0
    with PacketStreamWriter(to, "none") as writer:
        for name, data in read_packet_stream(source, compression):
            writer.write(name, data)
            packets += 1
    return packets


@contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except RecordingError:
        raise
    except OSError as error:
        raise RecordingError(f"{path}: cannot be written: {error.strerror or error}") from error


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a stream for reading. Raises RecordingError if there is no such regular file."""
    try:
        return os.fdopen(open_regular(Path(path), RecordingError), "rb")
    except FileNotFoundError as error:
        raise RecordingError(f"{path}: there is no such packet stream") from error


def _content(file: BinaryIO, entry: Entry, compression: str, most: int, where: str) -> bytes:
    if entry.length > most:
        raise RecordingError(f"{where} has {entry.length} bytes, at most {most} are accepted (max_packet_bytes)")
    file.seek(entry.begin)
    data = file.read(entry.length)
    if len(data) < entry.length:
        raise RecordingError(f"{where} was cut off while it was read")
    what = f"{where} is not {compression}; name the compression that it was written with"
    own = (zstandard().ZstdError,) if compression == "zstd" else ()
    try:
        with as_own_error(RecordingError, what, *own):
            return _unpacked(data, compression, most, where)
    except CodecError as error:
        raise RecordingError(f"{what}: {error}") from error


def _packed(raw: bytes, compression: str) -> bytes:
    if compression == "none":
        return raw
    if compression == "zstd":
        return zstandard().ZstdCompressor(level=_ZSTD_LEVEL).compress(raw)  # type: ignore[no-any-return]
    return _lz4_frame().compress(raw, compression_level=_LZ4_LEVEL)  # type: ignore[no-any-return]


def _unpacked(data: bytes, compression: str, most: int, where: str) -> bytes:
    if compression == "none":
        return data
    if compression == "zstd":
        size = int(zstandard().get_frame_parameters(data).content_size)
        _check_size(size, most, where)
        return unzstd(data, size)
    frame = _lz4_frame().LZ4FrameDecompressor()
    raw: bytes = frame.decompress(data, max_length=most + 1)
    _check_size(len(raw), most, where)
    if not frame.eof or frame.unused_data:
        raise RecordingError(f"{where}: its lz4 frame does not end with the packet")
    return raw


def _check_size(size: int, most: int, where: str) -> None:
    if not 0 <= size <= most:
        raise RecordingError(f"{where} unpacks to more than {most} bytes, the most that is accepted (max_packet_bytes)")


def _checked(compression: str) -> str:
    if compression not in COMPRESSIONS:
        raise SettingsError(f"compression {compression!r}: expected one of {', '.join(COMPRESSIONS)}")
    return compression


def _lz4_frame() -> ModuleType:
    try:
        return import_module("lz4.frame")
    except ImportError as error:
        raise MissingExtra("record", "lz4") from error
