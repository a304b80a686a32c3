"""Truncated basis of rows: their mean and the k orthonormal directions that explain most of their variance.

The directions are the leading right singular vectors of the centered rows (principal components). Codec state:

    head    magic "SVD1", d u32, k u32, bytes of a number u8 (2 or 4), zeros
    body    one zstd frame: mean float32 [d], directions [k, d] as float16 or float32
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from actscope.codecs.coding.compressors import unzstd, zstandard
from actscope.codecs.dtypes import as_bytes
from actscope.errors import CodecError

_HEAD = struct.Struct("<4sIIB3x")
_MAGIC = b"SVD1"
_FLOATS: dict[int, np.dtype[np.floating]] = {2: np.dtype("<f2"), 4: np.dtype("<f4")}
#: Above this size an exact decomposition takes seconds. A randomized one is equally good to within one percent.
_EXACT_SIZE = 2048
_OVERSAMPLING = 16
#: Largest number of values of the directions, k * d: 512 MiB of float32, checked before they are unpacked.
MOST_NUMBERS = 1 << 27
_POWER_ITERATIONS = 2


@dataclass(frozen=True, slots=True)
class Basis:
    """Basis of a site's rows.

    mean: float32 [d]. directions: float32 [k, d], orthonormal up to the stored precision.
    width: stored bytes per number, 2 or 4.
    """

    mean: np.ndarray
    directions: np.ndarray
    width: int

    def coefficients(self, rows: np.ndarray) -> np.ndarray:
        """Project rows, float32 [n, d], to coefficients, float32 [n, k]."""
        return (rows - self.mean) @ self.directions.T  # type: ignore[no-any-return]

    def rows(self, coefficients: np.ndarray) -> np.ndarray:
        """Reconstruct rows, float32 [n, d], from coefficients [n, k]."""
        rows = coefficients.astype(np.float32, copy=False) @ self.directions
        rows += self.mean
        return rows  # type: ignore[no-any-return]

    def write(self) -> bytes:
        """Return the basis as the bytes of a codec state."""
        k, d = self.directions.shape
        body = as_bytes(self.mean).tobytes() + self.directions.astype(_FLOATS[self.width]).tobytes()
        return _HEAD.pack(_MAGIC, d, k, self.width) + zstandard().ZstdCompressor(level=1).compress(body)  # type: ignore[no-any-return]


@lru_cache(maxsize=4)
def read_basis(state: bytes, wanted_d: int) -> Basis:
    """Parse a codec state. Raises CodecError if it is malformed, or of rows of another width than `wanted_d`."""
    if len(state) < _HEAD.size:
        raise CodecError(f"SVD state: expected at least {_HEAD.size} bytes, found {len(state)}")
    magic, d, k, width = _HEAD.unpack_from(state)
    if magic != _MAGIC or width not in _FLOATS or not 0 < k <= d or k * d > MOST_NUMBERS:
        raise CodecError(f"SVD state: expected magic {_MAGIC!r}, found {magic!r} with d {d}, k {k}, {width} bytes")
    if d != wanted_d:
        raise CodecError(f"SVD state: it is of rows {d} wide, expected {wanted_d}")
    body = unzstd(memoryview(state)[_HEAD.size :], 4 * d + k * d * width)
    mean = np.frombuffer(body, "<f4", d)
    return Basis(mean, np.frombuffer(body, _FLOATS[width], k * d, 4 * d).reshape(k, d).astype(np.float32), width)


def fitted(rows: np.ndarray, k: int) -> Basis:
    """Fit a basis to float32 rows [n, d], all finite, with k <= d directions in float32 (see `narrowed`)."""
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    leading = _randomised if min(centred.shape) > _EXACT_SIZE else _exact
    return Basis(mean, leading(centred, k), 4)


def narrowed(basis: Basis) -> Basis:
    """Return the basis with directions rounded to float16."""
    return Basis(basis.mean, basis.directions.astype(np.float16).astype(np.float32), 2)


def _exact(centred: np.ndarray, k: int) -> np.ndarray:
    """Compute directions from the smaller of the two Gram matrices. Random ones fill up if there are fewer rows than k."""
    n, d = centred.shape
    wide = centred.astype(np.float64)
    if n >= d:
        return _leading(np.linalg.eigh(wide.T @ wide)[1], k)
    directions = (wide.T @ np.linalg.eigh(wide @ wide.T)[1][:, ::-1])[:, :k]
    filling = np.random.default_rng(0).standard_normal((d, k - directions.shape[1]))
    return _orthonormal(np.concatenate([directions, filling], axis=1))


def _leading(vectors: np.ndarray, k: int) -> np.ndarray:
    return np.ascontiguousarray(vectors[:, ::-1][:, :k].T, dtype=np.float32)


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.linalg.qr(columns)[0].T, dtype=np.float32)


def _randomised(centred: np.ndarray, k: int) -> np.ndarray:
    """Randomised range finder with power iterations (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1)."""
    n, d = centred.shape
    width = min(k + _OVERSAMPLING, n, d)
    sketch = centred @ np.random.default_rng(0).standard_normal((d, width), dtype=np.float32)
    for _ in range(_POWER_ITERATIONS):
        sketch = centred @ np.linalg.qr(centred.T @ np.linalg.qr(sketch)[0])[0]
    small = np.linalg.qr(sketch)[0].T @ centred
    found = np.linalg.svd(small, full_matrices=False)[2][:k]
    filling = np.random.default_rng(0).standard_normal((d, k - len(found)))
    return _orthonormal(np.concatenate([found.T, filling], axis=1)) if len(found) < k else np.ascontiguousarray(found)
