"""Normalisation statistics over all rows that have ever been in the buffer, for trainers that scale rows.

`norm_scale` = sqrt(width) / mean L2 norm. Rows multiplied by it have a mean L2 norm of sqrt(width), as in SAELens's
`expected_average_only_in` and Anthropic's "Circuits updates: April 2024".
"""

from __future__ import annotations

import math

import numpy as np

from actscope.feed.answers import SiteScale, SiteVectors
from actscope.feed.messages import WindowSums


class SiteNormalisation:
    """Normalisation statistics of one site. Sums are float64."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self._values = np.zeros(width)
        self._squares = np.zeros(width)
        self._norms = 0.0

    def add(self, n: int, sums: WindowSums) -> None:
        """Add the sums over a window's `n` rows."""
        self.n += n
        self._values += np.frombuffer(sums.values)
        self._squares += np.frombuffer(sums.squares)
        self._norms += sums.norms

    @property
    def mean(self) -> np.ndarray:
        """Mean of each dimension: float64 [width]."""
        return self._values / max(self.n, 1)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation of each dimension: float64 [width]."""
        found: np.ndarray = np.sqrt(np.maximum(self._squares / max(self.n, 1) - self.mean**2, 0.0))
        return found

    @property
    def mean_norm(self) -> float:
        """Mean L2 norm of a row."""
        return self._norms / max(self.n, 1)

    def summary(self) -> SiteScale:
        """Return rows, mean_norm and norm_scale (None while there is no norm)."""
        scale = math.sqrt(len(self._values)) / self.mean_norm if self.mean_norm else None
        return {"rows": self.n, "mean_norm": self.mean_norm, "norm_scale": scale}

    def vectors(self) -> SiteVectors:
        """Return the summary with the mean and the standard deviation of each dimension."""
        return {**self.summary(), "mean": self.mean.tolist(), "std": self.std.tolist()}
