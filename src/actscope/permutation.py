"""Format-preserving pseudo-random permutation of n items: O(1) memory, random access, invertible.

A balanced Feistel network over the smallest domain 4^b >= n, with cycle walking until the result lies below n (Black and
Rogaway 2002, "Ciphers with arbitrary finite domains"). The round function is the keyed finaliser of MurmurHash3. The same
key gives the same order on every machine and in every version: feeds and harvests rely on this to resume.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from actscope.errors import SettingsError

_ROUNDS = 6
_MOST = 1 << 62


class Permutation:
    """A keyed bijection of 0 .. n - 1.

    Args:
        n: Number of items, 0 to 2^62.
        key: Any integers and strings, e.g. seed and epoch.

    Raises:
        SettingsError: `n` is out of range.
    """

    def __init__(self, n: int, *key: int | str) -> None:
        if not 0 <= n <= _MOST:
            raise SettingsError(f"a permutation of {n} things: expected 0 to 2^62")
        self.n = n
        self._half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = blake2b("/".join(map(str, key)).encode(), digest_size=8 * _ROUNDS, person=b"actscope").digest()
        self._keys = np.frombuffer(digest, "<u8")

    def __len__(self) -> int:
        return self.n

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Return the items at these places: int64, of the shape of `places`. All are in 0 .. n - 1, else IndexError."""
        return self._walk(np.asarray(places), self._forward)

    def inverse(self, things: np.ndarray) -> np.ndarray:
        """Return the places of these items: int64, of the shape of `things`. All are in 0 .. n - 1, else IndexError."""
        return self._walk(np.asarray(things), self._backward)

    def part(self, start: int, stop: int) -> np.ndarray:
        """Return the items at places start .. stop - 1: int64 [stop - start]."""
        return self(np.arange(start, stop))

    def _walk(self, values: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if values.size and not (values.min() >= 0 and values.max() < self.n):
            raise IndexError(f"a place outside 0 .. {self.n - 1}")
        flat = values.reshape(-1).astype(np.uint64)
        out = step(flat)
        outside = np.flatnonzero(out >= self.n)
        while len(outside):
            out[outside] = step(out[outside])
            outside = outside[out[outside] >= self.n]
        return out.astype(np.int64).reshape(values.shape)

    def _forward(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right, key) & self._mask)
        return (left << self._half) | right

    def _backward(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys[::-1]:
            left, right = right ^ (_mixed(left, key) & self._mask), left
        return (left << self._half) | right


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hash `values + key` by fmix64, the finaliser of MurmurHash3 (Appleby 2011)."""
    x = values + key
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x
