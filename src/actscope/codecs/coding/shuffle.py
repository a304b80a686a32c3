"""Byte shuffle: the first bytes of all elements, then their second bytes, and so on, which groups similar bytes.

elements   a0 a1 b0 b1 c0 c1      (two bytes each)
planes     a0 b0 c0  a1 b1 c1
"""

from __future__ import annotations

import numpy as np


def shuffle(flat: np.ndarray, size: int) -> np.ndarray:
    """Split elements of `size` bytes, uint8 [m * size], into byte planes, uint8 [size, m]."""
    planes = np.empty((size, flat.size // size), np.uint8)
    if size == 2:  # numpy vectorizes arithmetic on whole elements, but not a strided byte copy
        words = flat.view(np.uint16)
        np.copyto(planes[0], words, casting="unsafe")
        np.right_shift(words, 8, out=planes[1], casting="unsafe")
    else:
        planes[:] = flat.reshape(-1, size).T
    return planes


def unshuffle(planes: np.ndarray) -> np.ndarray:
    """Invert `shuffle`: return elements, uint8 [m * size], from planes, uint8 [size, m]."""
    size, count = planes.shape
    if size != 2:
        return np.ascontiguousarray(planes.T).reshape(-1)
    words = planes[1].astype(np.uint16)
    words <<= 8
    words |= planes[0]
    flat: np.ndarray = words.view(np.uint8).reshape(count * 2)
    return flat
