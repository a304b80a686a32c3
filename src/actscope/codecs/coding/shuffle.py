"""Byte planes: first bytes of all elements, then second bytes, and so on, so that like stands by like.

elements   a0 a1 b0 b1 c0 c1      (two bytes each)
planes     a0 b0 c0  a1 b1 c1
"""

from __future__ import annotations

import numpy as np


def shuffle(flat: np.ndarray, size: int) -> np.ndarray:
    """uint8 [m * size] of elements of `size` bytes, as planes: uint8 [size, m]."""
    planes = np.empty((size, flat.size // size), np.uint8)
    if size == 2:  # arithmetic on whole elements is vectorised; a strided copy of bytes is not
        words = flat.view(np.uint16)
        np.copyto(planes[0], words, casting="unsafe")
        np.right_shift(words, 8, out=planes[1], casting="unsafe")
    else:
        planes[:] = flat.reshape(-1, size).T
    return planes


def unshuffle(planes: np.ndarray) -> np.ndarray:
    """Planes uint8 [size, m] back to elements: uint8 [m * size]."""
    size, count = planes.shape
    if size != 2:
        return np.ascontiguousarray(planes.T).reshape(-1)
    words = planes[1].astype(np.uint16)
    words <<= 8
    words |= planes[0]
    flat: np.ndarray = words.view(np.uint8).reshape(count * 2)
    return flat
