"""`lossless`: bit-exact floating-point rows, with exponents and mantissas in separate byte planes.

Each number is rotated left by one bit, which moves the exponent to the top and the sign to the bottom:

    bfloat16   s eeeeeeee mmmmmmm  ->  eeeeeeee | mmmmmmm s
    float16    s eeeee mmmmmmmmmm  ->  eeeee mmm | mmmmmmm s

The 8-bit exponents of activations have an entropy of about 2.7 bits and are entropy-coded. Mantissas and signs are nearly
random and stored raw. The choice is made per byte plane by trial: bfloat16 values held as float32, for example, have two
planes of zeros. The transform only permutes bits, so NaN payloads, -0.0 and subnormals need no special case.
The payload consists of the byte planes as sections (see `planes`), most significant first.
"""

from __future__ import annotations

import numpy as np

from actscope.codecs.coding.compressors import Buffer
from actscope.codecs.coding.planes import PlaneReader, PlaneWriter
from actscope.codecs.coding.scratch import borrowed
from actscope.codecs.contract import Encoded
from actscope.codecs.dtypes import as_bytes, as_rows, checked_rows, itemsize
from actscope.codecs.general import SHUFFLE_ZSTD, General
from actscope.errors import CodecError

LOSSLESS = 5
_FLOATS = ("bfloat16", "float16", "float32", "float64")
#: Elements processed at a time, so that intermediate arrays stay in the cache.
_CHUNK = 1 << 17


class Lossless:
    """Lossless encoder: byte planes for bfloat16, float16, float32 and float64, `shuffle_zstd` for other dtypes."""

    def __init__(self) -> None:
        self._writer = PlaneWriter()
        self._other = General(SHUFFLE_ZSTD)

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Encode rows [n, d] bit-exactly. Dtypes that are not floating point are encoded with `shuffle_zstd`."""
        rows = checked_rows(rows, dtype)
        if dtype not in _FLOATS:
            return self._other.encode(rows, dtype)
        return Encoded(LOSSLESS, self.payload(rows, dtype), None)

    def payload(self, rows: np.ndarray, dtype: str) -> bytes:
        """Return the payload for C-contiguous floating-point rows."""
        for plane in exponent_planes(as_bytes(rows), itemsize(dtype)):
            self._writer.add(plane)
        return self._writer.take()

    def report(self) -> dict[str, object]:
        """Return an empty report: this codec makes no choices."""
        return {}


def decode_lossless(payload: Buffer, n: int, d: int, dtype: str) -> np.ndarray:
    """Decode rows [n, d]. Raises CodecError if the payload does not hold exactly n x d elements of a float dtype."""
    if dtype not in _FLOATS:
        raise CodecError(f"lossless rows: expected one of {', '.join(_FLOATS)}, found {dtype}")
    reader = PlaneReader(payload)
    planes = [reader.plane(n * d) for _ in range(itemsize(dtype))]
    reader.end()
    return as_rows(joined(planes), n, d, dtype)


def exponent_planes(flat: np.ndarray, size: int) -> np.ndarray:
    """Split floats, uint8 [m * size], into byte planes uint8 [size, m], most significant first. The result is borrowed."""
    words = flat.view(f"<u{size}")
    planes = borrowed("exponent planes", (size, words.size), np.uint8)
    turned = borrowed("turned", (min(_CHUNK, words.size),), words.dtype)
    scratch = borrowed("shifted", turned.shape, words.dtype)
    for begin in range(0, words.size, _CHUNK):
        word = words[begin : begin + _CHUNK]
        turn, shifted = turned[: word.size], scratch[: word.size]
        np.left_shift(word, 1, out=turn)
        turn |= np.right_shift(word, 8 * size - 1, out=shifted)
        np.copyto(planes[-1, begin : begin + _CHUNK], turn, casting="unsafe")
        for i in range(size - 1):
            np.right_shift(turn, 8 * (size - 1 - i), out=shifted)
            np.copyto(planes[i, begin : begin + _CHUNK], shifted, casting="unsafe")
    return planes


def joined(planes: list[np.ndarray]) -> np.ndarray:
    """Invert `exponent_planes`: return uint8 [m * size]."""
    size, count = len(planes), planes[0].size
    words = np.empty(count, f"<u{size}")
    for begin in range(0, count, _CHUNK):
        word = words[begin : begin + _CHUNK]
        np.copyto(word, planes[0][begin : begin + _CHUNK])
        for plane in planes[1:]:
            word <<= 8
            word |= plane[begin : begin + _CHUNK]
        low = word & 1
        low <<= 8 * size - 1
        word >>= 1
        word |= low
    return words.view(np.uint8)
