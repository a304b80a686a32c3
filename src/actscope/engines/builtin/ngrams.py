"""Baselines for the model's perplexity on the same tokens: unigram and trigram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DISCOUNT = 0.75


@dataclass(frozen=True)
class _CountTable:
    """Sorted keys with their counts. Missing keys count 0."""

    keys: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray) -> _CountTable:
        return cls(*np.unique(keys, return_counts=True))

    @classmethod
    def sums(cls, keys: np.ndarray, counts: np.ndarray) -> _CountTable:
        """Sum the counts of equal keys; `keys` are sorted."""
        unique, first = np.unique(keys, return_index=True)
        return cls(unique, np.add.reduceat(counts, first))

    def __getitem__(self, keys: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)


class Unigram:
    """Relative frequencies with add-one smoothing."""

    def __init__(self, ids: np.ndarray, vocabulary: int) -> None:
        counts = np.bincount(ids, minlength=vocabulary) + 1.0
        self._p = counts / counts.sum()

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Return the probability of every token from the third on."""
        return np.asarray(self._p[ids[2:]])


class Trigram:
    """Interpolated Kneser-Ney of order 3 with discount 0.75 (Chen and Goodman 1999), over a uniform floor."""

    def __init__(self, ids: np.ndarray, vocabulary: int) -> None:
        self._v = v = vocabulary
        ids = ids.astype(np.int64)
        self._three = _CountTable.of((ids[:-2] * v + ids[1:-1]) * v + ids[2:])
        context = self._three.keys // v
        self._after_two = _CountTable.sums(context, self._three.counts)
        self._kinds_after_two = _CountTable.of(context)
        # Lower orders count the distinct contexts in which a token was seen, not its occurrences.
        self._two = _CountTable.of(self._three.keys % (v * v))
        self._after_one = _CountTable.sums(self._two.keys // v, self._two.counts)
        self._kinds_after_one = _CountTable.of(self._two.keys // v)
        kinds_before = np.bincount(self._two.keys % v, minlength=v) + 0.01
        self._one = kinds_before / kinds_before.sum()

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Return the probability of every token from the third on, given the two before it."""
        v, ids = self._v, ids.astype(np.int64)
        first, second, third = ids[:-2], ids[1:-1], ids[2:]
        p = self._one[third]
        p = _interpolated(self._two[second * v + third], self._after_one[second], self._kinds_after_one[second], p)
        pair = first * v + second
        return _interpolated(self._three[pair * v + third], self._after_two[pair], self._kinds_after_two[pair], p)


def _interpolated(seen: np.ndarray, total: np.ndarray, kinds: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the discounted estimate plus the discounted mass times the lower order; for new contexts the lower order alone."""
    safe = np.maximum(total, 1)
    return np.where(total > 0, np.maximum(seen - _DISCOUNT, 0) / safe + _DISCOUNT * kinds / safe * lower, lower)
