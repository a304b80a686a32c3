"""Normalisation statistics: what a trainer scales rows by, over all rows that were ever in the buffer.

`norm_scale` = sqrt(width) / mean L2 norm: rows times it have a mean norm of sqrt(width), as SAELens's
`expected_average_only_in` and Anthropic's "Circuits updates: April 2024" have it.
"""

from __future__ import annotations

import math

import numpy as np

from actscope.feed.answers import SiteScale, SiteVectors
from actscope.feed.messages import WindowSums


class SiteNormalisation:
    """Of one site. Sums are float64."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self._values = np.zeros(width)
        self._squares = np.zeros(width)
        self._norms = 0.0

    def add(self, n: int, sums: WindowSums) -> None:
        """Another window's rows."""
        self.n += n
        self._values += np.frombuffer(sums.values)
        self._squares += np.frombuffer(sums.squares)
        self._norms += sums.norms

    @property
    def mean(self) -> np.ndarray:
        """float64 [width]."""
        return self._values / max(self.n, 1)

    @property
    def std(self) -> np.ndarray:
        """float64 [width], of the population."""
        found: np.ndarray = np.sqrt(np.maximum(self._squares / max(self.n, 1) - self.mean**2, 0.0))
        return found

    @property
    def mean_norm(self) -> float:
        """Mean L2 norm of a row."""
        return self._norms / max(self.n, 1)

    def summary(self) -> SiteScale:
        """For people, and for scaling."""
        scale = math.sqrt(len(self._values)) / self.mean_norm if self.mean_norm else None
        return {"rows": self.n, "mean_norm": self.mean_norm, "norm_scale": scale}

    def vectors(self) -> SiteVectors:
        """The summary, with mean and standard deviation of each dimension."""
        return {**self.summary(), "mean": self.mean.tolist(), "std": self.std.tolist()}
