"""Integers cut in two: their low bits, as good as random, and a signed byte on top that an entropy coder takes.

With k low bits, `q == top << k | low`, `top` in -128..127; k may be 0, 1, 2, 4, 8, 12 or 16. Each eight low bits are a
byte plane; what is left of them is packed, several to a byte, in whole stretches of what is packed together:

    4 bits, 6 elements     a b c d e f  ->  a|d<<4  b|e<<4  c|f<<4
"""

from __future__ import annotations

import numpy as np

from actscope.codecs.coding.scratch import borrowed

LOW_BITS = (0, 1, 2, 4, 8, 12, 16)


def limit(k: int) -> int:
    """Integers in -limit .. limit - 1 can be cut with k low bits."""
    return 128 << k


def packed_size(count: int, bits: int) -> int:
    """Bytes for `count` fields of 1, 2 or 4 bits; a multiple of eight, so that whole words can be worked on."""
    return -(-count * bits // 64) * 8


def cut(q: np.ndarray, k: int, low: list[np.ndarray], top: np.ndarray) -> None:
    """Integers [m] into k // 8 byte planes and, when k % 8, one of loose fields, each uint8 [m]; and the top, int8 [m]."""
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
    """What `cut` took apart, into integers `out` [m]."""
    np.copyto(out, top)
    if k % 8:
        out *= 1 << k % 8  # a multiplication is vectorised, a shift is not
        out |= low[-1]
    for plane in reversed(low[: k // 8]):
        out *= 256
        out |= plane


def pack(fields: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Fields, uint8 [m] each below 1 << bits, into uint8 [packed_size]."""
    room = out.size * (8 // bits)
    if fields.size < room:
        fields = np.concatenate([fields, np.zeros(room - fields.size, np.uint8)])
    stretches = fields.view(np.uint64).reshape(8 // bits, -1)
    words = out.view(np.uint64)
    np.copyto(words, stretches[0])
    for i, stretch in enumerate(stretches[1:], 1):
        words |= stretch << np.uint64(i * bits)


def unpack(plane: np.ndarray, bits: int, out: np.ndarray) -> None:
    """What `pack` packed, into uint8 [packed_size * 8 / bits]; what is beyond the fields is zero if it was packed so."""
    words = plane.view(np.uint64)
    mask = np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    for i, stretch in enumerate(out.view(np.uint64).reshape(8 // bits, -1)):
        np.right_shift(words, np.uint64(i * bits), out=stretch)
        stretch &= mask
