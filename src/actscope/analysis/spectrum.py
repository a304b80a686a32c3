"""Spectrum of the rows' covariance: how many directions the rows use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Eigenvalues of a covariance, descending, float64 [d], estimated from `rows` rows.

    There should be many more rows than dimensions: n rows give at most n - 1 eigenvalues above zero.

    effective_rank        exp of the entropy of the eigenvalues' shares, natural logarithm (Roy & Vetterli 2007, "The effective
                          rank: a measure of effective dimensionality", of the covariance matrix)
    participation_ratio   (sum of eigenvalues)^2 / sum of their squares
    n_for(share)          number of leading directions that hold this share of the variance
    """

    eigenvalues: np.ndarray
    rows: int

    @classmethod
    def of(cls, covariance: np.ndarray, rows: int) -> Spectrum:
        """Return the spectrum of a covariance [d, d] that was estimated from `rows` rows. Negative eigenvalues become 0."""
        return cls(np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0), rows)

    @property
    def shares(self) -> np.ndarray:
        """Return each eigenvalue's share of the total variance, float64 [d]; all 0 if there is no variance."""
        total = float(self.eigenvalues.sum())
        return np.asarray(self.eigenvalues / total if total > 0 else self.eigenvalues)

    @property
    def effective_rank(self) -> float:
        """Return exp of the entropy of `shares`, from 1 to d; 0 if there is no variance."""
        shares = self.shares[self.shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0

    @property
    def participation_ratio(self) -> float:
        """Return 1 / the sum of the squared `shares`, from 1 to d; 0 if there is no variance."""
        squares = float((self.shares**2).sum())
        return 1 / squares if squares > 0 else 0.0

    def n_for(self, share: float) -> int:
        """Return the number of leading directions that hold this share of the variance; 0 if there is no variance."""
        reached = np.cumsum(self.shares)
        return min(int(np.searchsorted(reached, share - 1e-12)) + 1, len(reached)) if reached.any() else 0
