"""Change of rows along a text, in bins of positions that double in width. Position 0, often special, has its own bin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows at the positions `first .. last`: their mean norm, and their mean cosine to the mean of all rows."""

    first: int
    last: int
    rows: int
    mean_norm: float
    mean_cosine: float


class Drift:
    """Accumulates rows by position, in the bins 0, 1, 2-3, 4-7, 8-15, and so on."""

    def __init__(self, d: int) -> None:
        self._d = d
        self._counts: dict[int, int] = {}
        self._norms: dict[int, float] = {}
        self._directions: dict[int, np.ndarray] = {}

    def add(self, rows: np.ndarray, norms: np.ndarray, positions: np.ndarray) -> None:
        """Add rows [n, d], float64, with their norms and positions [n]. A row of zeros counts with cosine 0."""
        bins = np.where(positions > 0, np.frexp(np.maximum(positions, 1))[1], 0)
        units = rows / np.where(norms > 0, norms, 1)[:, None]
        for number in np.unique(bins).tolist():
            mine = bins == number
            self._counts[number] = self._counts.get(number, 0) + int(mine.sum())
            self._norms[number] = self._norms.get(number, 0.0) + float(norms[mine].sum())
            self._directions[number] = self._directions.get(number, np.zeros(self._d)) + units[mine].sum(axis=0)

    def bins(self, mean: np.ndarray) -> list[Bin]:
        """Return the bins that have rows. `mean` [d] is the mean of all rows, to which cosines are taken."""
        length = float(np.linalg.norm(mean))
        direction = mean / length if length else mean
        return [
            Bin(
                first=0 if number == 0 else 1 << (number - 1),
                last=0 if number == 0 else (1 << number) - 1,
                rows=(n := self._counts[number]),
                mean_norm=self._norms[number] / n,
                mean_cosine=float(self._directions[number] @ direction) / n,
            )
            for number in sorted(self._counts)
        ]
