"""Integers split into low bits, which are nearly random, and a signed top byte, which is entropy-coded.

With k low bits, `q == top << k | low` and `top` is in -128..127; k is 0, 1, 2, 4, 8, 12 or 16. Each group of eight low bits
is a byte plane. The remaining bits are packed several to a byte. Fields are taken at a fixed stride, not adjacent ones:

    4 bits, 6 elements     a b c d e f  ->  a|d<<4  b|e<<4  c|f<<4
"""

from __future__ import annotations

import numpy as np

from actscope.codecs.coding.scratch import borrowed

LOW_BITS = (0, 1, 2, 4, 8, 12, 16)


def limit(k: int) -> int:
    """Return the limit for k low bits: integers in -limit .. limit - 1 can be split."""
    return 128 << k


def packed_size(count: int, bits: int) -> int:
    """Return the bytes for `count` fields of 1, 2 or 4 bits, rounded up to a multiple of eight (whole words)."""
    return -(-count * bits // 64) * 8


def cut(q: np.ndarray, k: int, low: list[np.ndarray], top: np.ndarray) -> None:
    """Split integers [m] into k // 8 byte planes, one plane of fields if k % 8 (each uint8 [m]), and the top, int8 [m]."""
    rest = q
    for plane in low[: k // 8]:
        np.copyto(plane, rest, casting="unsafe")
        rest = np.right_shift(rest, 8, out=borrowed("shifted", q.shape, q.dtype))
    if k % 8:
        field = low[-1]
        np.copyto(field, rest, casting="unsafe")
        field &= (1 << k % 8) - 1
        rest = np.right_shift(rest, k % 8, out=borrowed("shifted", q.shape, q.dtype))
    np.copyto(top, rest, casting="unsafe")


def joined(top: np.ndarray, low: list[np.ndarray], k: int, out: np.ndarray) -> None:
    """Invert `cut`: write the integers to `out` [m]."""
    np.copyto(out, top)
    if k % 8:
        out *= 1 << k % 8  # numpy vectorizes a multiplication, but not a shift
        out |= low[-1]
    for plane in reversed(low[: k // 8]):
        out *= 256
        out |= plane


def pack(fields: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Pack fields, uint8 [m], each below 1 << bits, into `out`, uint8 [packed_size]."""
    room = out.size * (8 // bits)
    if fields.size < room:
        fields = np.concatenate([fields, np.zeros(room - fields.size, np.uint8)])
    stretches = fields.view(np.uint64).reshape(8 // bits, -1)
    words = out.view(np.uint64)
    np.copyto(words, stretches[0])
    for i, stretch in enumerate(stretches[1:], 1):
        words |= stretch << np.uint64(i * bits)


def unpack(plane: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Invert `pack`: write fields to `out`, uint8 [packed_size * 8 / bits]. `pack` pads them with zeros."""
    words = plane.view(np.uint64)
    mask = np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    for i, stretch in enumerate(out.view(np.uint64).reshape(8 // bits, -1)):
        np.right_shift(words, np.uint64(i * bits), out=stretch)
        stretch &= mask
