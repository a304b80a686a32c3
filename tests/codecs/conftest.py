"""Rows that codecs are tried on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from actscope.codecs import carrier, from_float32, itemsize


@pytest.fixture
def any_bits() -> Callable[..., np.ndarray]:
    """Rows of every possible bit pattern: NaN payloads, infinities, negative zeros and subnormals among them."""

    def make(n: int, d: int, dtype: str, seed: int = 0) -> np.ndarray:
        size = n * d * itemsize(dtype)
        return np.random.default_rng(seed).integers(0, 256, size, np.uint8).view(carrier(dtype)).reshape(n, d)

    return make


@pytest.fixture
def activations() -> Callable[..., np.ndarray]:
    """Rows like a model's: channels of unlike spread and mean, two massive ones, correlated through a small basis."""

    def make(n: int, d: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        fixed = np.random.default_rng(12345 + d)  # the same model for every seed
        spread, mean = fixed.lognormal(0, 0.5, d), fixed.standard_normal(d)
        mixing = fixed.standard_normal((max(1, d // 8), d))
        rows = rng.standard_normal((n, d)) * spread + rng.standard_normal((n, len(mixing))) @ mixing + mean
        rows[:, :2] += 30 * (d > 8)
        return from_float32(rows.astype(np.float32), dtype).copy()

    return make
