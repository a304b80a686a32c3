"""`none`, `lz4`, `zstd`, `shuffle_lz4` and `shuffle_zstd`: lossless for any dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from actscope.codecs.coding.compressors import Buffer, lz4_block, unlz4, unzstd, zstandard
from actscope.codecs.coding.shuffle import shuffle, unshuffle
from actscope.codecs.contract import Encoded
from actscope.codecs.dtypes import as_bytes, as_rows, checked_rows, itemsize
from actscope.errors import CodecError

NONE, LZ4, ZSTD, SHUFFLE_LZ4, SHUFFLE_ZSTD = range(5)
_SHUFFLED = (SHUFFLE_LZ4, SHUFFLE_ZSTD)
Packer = Callable[[np.ndarray], bytes]


class General:
    """Encoder with a general-purpose compressor, optionally after a byte shuffle. The payload is one frame or block."""

    def __init__(self, code: int, level: int = 1) -> None:
        self._code = code
        self._pack = _packer(code, level)

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Compress the bytes of rows [n, d]. With `none` the payload shares memory with the rows."""
        flat = as_bytes(checked_rows(rows, dtype))
        if self._pack is None:
            return Encoded(self._code, flat.data, None)
        if self._code in _SHUFFLED:
            flat = shuffle(flat, itemsize(dtype)).reshape(-1)
        return Encoded(self._code, self._pack(flat) if flat.size else b"", None)

    def report(self) -> dict[str, object]:
        """Return an empty report: this codec makes no choices."""
        return {}


def _packer(code: int, level: int) -> Packer | None:
    if code == NONE:
        return None
    if code in (LZ4, SHUFFLE_LZ4):
        module = lz4_block()
        return lambda flat: module.compress(flat, store_size=False)
    return zstandard().ZstdCompressor(level=level).compress  # type: ignore[no-any-return]


def decode_general(code: int, payload: Buffer, n: int, d: int, dtype: str) -> np.ndarray:
    """Decode rows [n, d]. Raises CodecError if the payload does not hold exactly n x d elements."""
    width = itemsize(dtype)
    size = n * d * width
    flat = np.frombuffer(_unpacked(code, payload, size), np.uint8)
    if code in _SHUFFLED:
        flat = unshuffle(flat.reshape(width, n * d))
    return as_rows(flat, n, d, dtype)


def _unpacked(code: int, payload: Buffer, size: int) -> Buffer:
    if code == NONE or size == 0:
        if len(payload) != size:
            raise CodecError(f"raw rows: expected {size} bytes, found {len(payload)}")
        return payload
    return unlz4(payload, size) if code in (LZ4, SHUFFLE_LZ4) else unzstd(payload, size)
