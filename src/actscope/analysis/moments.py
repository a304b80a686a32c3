"""Numerically stable one-pass moments of rows, batch by batch.

Each batch is centred on its own mean and then merged, by the formulas of Pébay 2008, "Formulas for Robust, One-Pass Parallel
Computation of Covariances and Arbitrary-Order Statistical Moments" (SAND2008-6212), eqs. 2.1 and 3.1. All sums are float64.
"""

from __future__ import annotations

import numpy as np


class Moments:
    """Count, and for each dimension the mean and the sums of centred powers 2, 3 and 4: float64 [d]."""

    def __init__(self, d: int) -> None:
        self.n = 0
        self.mean, self.m2, self.m3, self.m4 = (np.zeros(d) for _ in range(4))

    def add(self, rows: np.ndarray) -> None:
        """Take in rows [n, d], float64 and finite."""
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        off = rows - mean
        square = off * off
        m2 = square.sum(axis=0)
        m3 = (square * off).sum(axis=0)
        np.multiply(square, square, out=square)
        self._merge(len(rows), mean, m2, m3, square.sum(axis=0))

    def _merge(self, nb: int, mean: np.ndarray, m2: np.ndarray, m3: np.ndarray, m4: np.ndarray) -> None:
        na, n = self.n, self.n + nb
        delta = mean - self.mean
        d2 = delta * delta
        self.m4 += (
            m4
            + d2 * d2 * (na * nb * (na * na - na * nb + nb * nb) / n**3)
            + 6 * d2 * (na * na * m2 + nb * nb * self.m2) / n**2
            + 4 * delta * (na * m3 - nb * self.m3) / n
        )
        self.m3 += m3 + d2 * delta * (na * nb * (na - nb) / n**2) + 3 * delta * (na * m2 - nb * self.m2) / n
        self.m2 += m2 + d2 * (na * nb / n)
        self.mean += delta * (nb / n)
        self.n = n

    @property
    def variance(self) -> np.ndarray:
        """Of the population: divided by n."""
        return np.asarray(self.m2 / max(1, self.n))

    @property
    def std(self) -> np.ndarray:
        """Return the standard deviation of each dimension, float64 [d]."""
        return np.asarray(np.sqrt(self.variance))

    @property
    def skewness(self) -> np.ndarray:
        """Population skewness g1 = sqrt(n) m3 / m2^1.5, from the sums of powers; NaN for a constant dimension."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(self.m2 > 0, np.sqrt(self.n) * self.m3 / self.m2**1.5, np.nan))

    @property
    def kurtosis(self) -> np.ndarray:
        """Population excess kurtosis g2 = n m4 / m2^2 - 3 (0 for a Gaussian); NaN for a constant dimension."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(self.m2 > 0, self.n * self.m4 / self.m2**2 - 3, np.nan))


class Covariance:
    """Count, mean [d] and the matrix of centred cross products [d, d], float64: 8 d^2 bytes."""

    def __init__(self, d: int) -> None:
        self.n = 0
        self.mean = np.zeros(d)
        self._sum = np.zeros((d, d))

    def add(self, rows: np.ndarray) -> None:
        """Take in rows [n, d], float64 and finite."""
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        off = rows - mean
        delta, n = mean - self.mean, self.n + len(rows)
        self._sum += off.T @ off
        self._sum += np.outer(delta, delta) * (self.n * len(rows) / n)
        self.mean += delta * (len(rows) / n)
        self.n = n

    @property
    def matrix(self) -> np.ndarray:
        """Of the population: divided by n."""
        return np.asarray(self._sum / max(1, self.n))
