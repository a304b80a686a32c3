"""Outlier dimensions and massive activations.

An outlier dimension is one whose mean over all rows, or whose log standard deviation, is more than `sigmas` robust standard
deviations (1.4826 x the median absolute deviation over dimensions) from the median of all dimensions. The robust scale is used
because a few huge dimensions would inflate the ordinary standard deviation and so hide themselves.

A massive activation is a number whose magnitude is above 100 and above 1000 times the median magnitude of its row (Sun et al.
2024, "Massive Activations in Large Language Models").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from actscope.analysis.moments import Moments

_CONSISTENT = 1.4826  # the MAD of a Gaussian x this is its standard deviation


@dataclass(frozen=True, slots=True)
class OutlierDimension:
    """One dimension, with the distance of its mean and of its log std from the medians, in robust standard deviations."""

    dimension: int
    mean: float
    std: float
    mean_sigmas: float
    std_sigmas: float


def outlier_dimensions(moments: Moments, sigmas: float = 6.0) -> list[OutlierDimension]:
    """Return the outlier dimensions, the furthest first. A constant dimension has no log std and is judged by its mean only."""
    std = moments.std
    of_mean = robust_scores(moments.mean)
    of_std = np.zeros(len(std))
    live = std > 0
    of_std[live] = robust_scores(np.log(std[live]))
    found = np.flatnonzero((np.abs(of_mean) > sigmas) | (np.abs(of_std) > sigmas))
    order = found[np.argsort(-np.maximum(np.abs(of_mean), np.abs(of_std))[found], kind="stable")]
    return [
        OutlierDimension(int(j), float(moments.mean[j]), float(std[j]), float(of_mean[j]), float(of_std[j]))
        for j in order
    ]


def robust_scores(values: np.ndarray) -> np.ndarray:
    """Return (value - median) / (1.4826 MAD) for each value.

    If the MAD is 0, because more than half of the values are equal, the ordinary standard deviation is used; 0 if all are equal.
    """
    if not len(values):
        return np.zeros(0)
    off = values - np.median(values)
    scale = _CONSISTENT * float(np.median(np.abs(off))) or float(values.std())
    return np.asarray(off / scale) if scale > 0 else np.zeros(len(values))


@dataclass(slots=True)
class Massive:
    """Counts of massive activations.

    Attributes:
        floor: Minimum magnitude.
        ratio: Minimum ratio to the median magnitude of the row.
        count: Number of massive activations.
        rows: Number of rows that have any.
        largest: Largest magnitude of any number.
        by_dimension: Count for each dimension.
        positions: Number of affected rows for each position.
    """

    floor: float = 100.0
    ratio: float = 1000.0
    count: int = 0
    rows: int = 0
    largest: float = 0.0
    by_dimension: dict[int, int] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)

    def add(self, rows: np.ndarray, positions: np.ndarray) -> None:
        """Add rows [n, d] at these positions [n]."""
        if not rows.size:
            return
        sizes = np.abs(rows)
        top = sizes.max(axis=1)
        self.largest = max(self.largest, float(top.max()))
        suspects = np.flatnonzero(top > self.floor)  # the median of a row costs far more than its maximum
        limit = (
            np.maximum(self.floor, self.ratio * np.median(sizes[suspects], axis=1)) if len(suspects) else np.zeros(0)
        )
        row, dimension = np.nonzero(sizes[suspects] > limit[:, None])
        self.count += len(row)
        self.rows += len(np.unique(row))
        _count(self.by_dimension, dimension)
        _count(self.positions, positions[suspects[np.unique(row)]])


def _count(counts: dict[int, int], values: np.ndarray) -> None:
    for value, n in zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True):
        counts[value] = counts.get(value, 0) + n
