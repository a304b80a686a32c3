"""Sections of a payload: byte planes, each stored raw or entropy-coded, whichever is smaller.

    section   length of the content in bytes u64, its top byte the method: 0 raw, 1 one zstd frame
              bytes

The reader knows the size of each plane in advance, so a section cannot decompress to more.
"""

from __future__ import annotations

import struct

import numpy as np

from actscope.codecs.coding.compressors import Buffer, unzstd, zstandard
from actscope.errors import CodecError

_HEAD = struct.Struct("<Q")
_RAW, _ZSTD = 0, 1
_METHOD_SHIFT = 56
_SAMPLE = 16 << 10
#: A plane is stored raw unless it shrinks below this fraction: reading a raw plane is a memory copy.
_WORTH_IT = 0.98


class PlaneWriter:
    """Collector of sections. Use one writer per encoder, because it reuses its zstd context."""

    def __init__(self) -> None:
        module = zstandard()
        # Activations hardly repeat, so only zstd's Huffman coding of literals matters. The smallest hash table and the
        # longest minimum match shorten the search for repeats (0.8 GB/s against 0.28 at level 1 on bf16 exponents, and
        # 7 % smaller). `target_length=0` keeps Huffman coding enabled.
        parameters = module.ZstdCompressionParameters(
            window_log=17, hash_log=6, chain_log=6, min_match=7, strategy=module.STRATEGY_FAST, target_length=0
        )
        self._huffman = module.ZstdCompressor(compression_params=parameters)
        self._parts: list[bytes | memoryview] = []

    def add(self, plane: np.ndarray, raw: bool = False) -> None:
        """Add a C-contiguous array of any dtype, which must not change until `take`. `raw`: skip compression."""
        flat = plane.reshape(-1).view(np.uint8)
        packed = None if raw else self._pack(flat)
        if packed is None:
            self.add_bytes(flat.data)
        else:
            self._parts += [_HEAD.pack(_ZSTD << _METHOD_SHIFT | len(packed)), packed]

    def add_bytes(self, content: Buffer) -> None:
        """Add bytes whose size the reader does not know, such as a nested payload."""
        self._parts += [_HEAD.pack(_RAW << _METHOD_SHIFT | len(content)), content]

    def _pack(self, flat: np.ndarray) -> bytes | None:
        if flat.size > 4 * _SAMPLE and not self._compresses(flat):
            return None
        packed: bytes = self._huffman.compress(flat)
        return packed if len(packed) < _WORTH_IT * flat.size else None

    def _compresses(self, flat: np.ndarray) -> bool:
        """Return whether a sample of four pieces of the plane compresses."""
        starts = np.linspace(0, flat.size - _SAMPLE // 4, 4, dtype=np.int64)
        sample = np.concatenate([flat[start : start + _SAMPLE // 4] for start in starts])
        return len(self._huffman.compress(sample)) < _WORTH_IT * sample.size

    def take(self, head: bytes = b"") -> bytes:
        """Return `head` and all sections since the last call as one payload."""
        payload = b"".join([head, *self._parts])
        self._parts.clear()
        return payload


class PlaneReader:
    """Reader of a payload's sections, in order. Raises CodecError if a section differs from what the caller expects."""

    def __init__(self, payload: Buffer) -> None:
        self._rest = memoryview(payload).cast("B")

    def head(self, layout: struct.Struct) -> tuple[int, ...]:
        """Read a fixed-size head."""
        return layout.unpack(self._cut(layout.size))

    def plane(self, size: int) -> np.ndarray:
        """Return the next section as uint8 [size], read-only."""
        method, content = self._section()
        if method == _ZSTD:
            content = unzstd(content, size)
        elif len(content) != size:
            raise CodecError(f"plane: expected {size} bytes, found {len(content)}")
        return np.frombuffer(content, np.uint8)

    def array(self, count: int, dtype: str) -> np.ndarray:
        """Return the next section as `count` elements of a numpy dtype, read-only."""
        return self.plane(count * np.dtype(dtype).itemsize).view(dtype)

    def content(self) -> Buffer:
        """Return the bytes of the next section, which `add_bytes` wrote."""
        method, content = self._section()
        if method != _RAW:
            raise CodecError(f"section: expected it raw, found method {method}")
        return content

    def end(self) -> None:
        """Raise CodecError unless the payload is exhausted."""
        if len(self._rest):
            raise CodecError(f"payload: expected its end, found {len(self._rest)} bytes more")

    def _section(self) -> tuple[int, Buffer]:
        (head,) = self.head(_HEAD)
        method, length = head >> _METHOD_SHIFT, head & ((1 << _METHOD_SHIFT) - 1)
        if method not in (_RAW, _ZSTD):
            raise CodecError(f"section: expected method 0 or 1, found {method}")
        return method, self._cut(length)

    def _cut(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise CodecError(f"payload: expected {size} bytes more, found {len(self._rest)}")
        cut, self._rest = self._rest[:size], self._rest[size:]
        return cut
