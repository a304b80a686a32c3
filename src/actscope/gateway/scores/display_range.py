"""Display ranges learnt from scores, for probes that state none.

One `DisplayRanges` belongs to one engine, so all clients of the gateway see the same range. It reads the request logs when a
client asks for the probes. The path of the tokens does no work for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypedDict
from weakref import WeakKeyDictionary

import numpy as np

from actscope.gateway.scores.request_log import RequestLog

Range = tuple[float, float]
#: A version of a probe: its id, and the generation `since` which it is in force.
ProbeVersion = tuple[str, int]

#: Tokens before a first range is given.
FIRST_TOKENS = 8
#: Scores other than 0 from which a range only widens.
SETTLED_SCORES = 512
#: Shares of the scores other than 0 below and above the range.
QUANTILES = (0.02, 0.98)

_SAMPLE = 4096
#: Rows that one call of `learn` reads. 1,024 rows of 64 probes take about 5 ms.
_ROWS = 1024


class LearntFacts(TypedDict):
    """How far a range is learnt: tokens seen, and whether it only widens from now on."""

    tokens: int
    settled: bool


class RangeFacts(TypedDict):
    """The part of a probe's description that is learnt. `range` is None while there are too few scores."""

    range: Range | None
    signed: bool
    range_learnt: LearntFacts


class RangeLearner:
    """Display range of one probe, from a uniform sample of its scores.

    The range is `display_range` of the sample. It is estimated when the number of scores other than 0 has doubled, so it changes
    ever more rarely; from `SETTLED_SCORES` on it only widens. Scores of exactly 0 (an inactive relu) are counted and not
    sampled, so a sparse feature has the range of its active tokens. The result does not depend on how scores are portioned.

    Attributes:
        n_tokens: Number of finite scores seen.
        range: The range (low, high), or None before the first estimate.
        settled: Whether the range only widens from now on.
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self.range: Range | None = None
        self.settled = False
        self._n_sampled = 0  # scores other than 0, each of which had a chance to be in the sample
        self._next = 1  # number of those at which the next estimate is due
        self._sample = np.empty(_SAMPLE, np.float32)
        self._random = np.random.default_rng(0)

    def add(self, scores: np.ndarray) -> None:
        """Learn from scores, float [n]. Those that are not finite are skipped."""
        scores = scores[np.isfinite(scores)]
        while len(scores):
            sampled = self._n_sampled + np.cumsum(scores != 0)
            due = (sampled >= self._next) & (np.arange(len(scores)) + self.n_tokens + 1 >= FIRST_TOKENS)
            stop = int(due.argmax()) + 1 if due.any() else len(scores)
            self.n_tokens += stop
            self._keep(scores[:stop][scores[:stop] != 0])
            if due.any():
                self._estimate()
            scores = scores[stop:]

    def facts(self) -> RangeFacts:
        """Return the range, and how far it is learnt."""
        learnt: LearntFacts = {"tokens": self.n_tokens, "settled": self.settled}
        return {"range": self.range, "signed": self.range is not None and self.range[0] < 0, "range_learnt": learnt}

    def _keep(self, scores: np.ndarray) -> None:
        """Update the uniform sample (algorithm R of Vitter 1985, "Random sampling with a reservoir")."""
        room = max(_SAMPLE - self._n_sampled, 0)
        first, rest = scores[:room], scores[room:]
        self._sample[self._n_sampled : self._n_sampled + len(first)] = first
        self._n_sampled += len(first)
        slots = self._random.integers(0, self._n_sampled + 1 + np.arange(len(rest)))
        chosen = slots < _SAMPLE
        self._sample[slots[chosen]] = rest[chosen]  # of two scores for one slot the later stays, as in the algorithm
        self._n_sampled += len(rest)

    def _estimate(self) -> None:
        sample = self._sample[: min(self._n_sampled, _SAMPLE)]
        found = display_range(sample, zeros=self.n_tokens > self._n_sampled)
        if self.settled and self.range is not None:
            found = min(found[0], self.range[0]), max(found[1], self.range[1])
        self.range = found
        self.settled = self._n_sampled >= SETTLED_SCORES
        self._next = 2 * self._n_sampled


def display_range(scores: np.ndarray, *, zeros: bool) -> Range:
    """Return a range that shows all but the outermost scores (`QUANTILES`), with round ends.

    It is symmetric about 0 if there are scores of both signs, so that 0 has no colour. Otherwise it begins at 0, or near the
    score closest to 0 if all are far from it (more than half as far as the farthest).

    Args:
        scores: Finite scores other than 0, float [n], n >= 1.
        zeros: Whether there were scores of 0 besides.
    """
    ordered = np.sort(scores.astype(np.float64))
    low, high = (_quantile(ordered, share) for share in QUANTILES)
    near, far = sorted((abs(low), abs(high)))
    if ordered[0] < 0 < ordered[-1]:
        return -_outward(far, far), _outward(far, far)
    if zeros or near <= far / 2 or near == far:
        near = 0.0
    begin, end = 0.0 - _outward(-near, far - near), _outward(far, far - near)
    return (begin, end) if high > 0 else (-end, 0.0 - begin)


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Return a quantile of sorted numbers, as np.quantile does, which takes ten times as long for a few hundred of them."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    one, other = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return float(one + (other - one) * (at - below))


def _outward(end: float, width: float) -> float:
    """Round an end of a range up, to two digits of the range's width."""
    step = 10.0 ** (math.floor(math.log10(width)) - 1)
    return float(f"{math.ceil(round(end / step, 6)) * step:.9g}")


class DisplayRanges:
    """Display ranges of an engine's probes that state none, learnt from the scores in its request logs.

    Rows that say nothing about ordinary tokens are left out: those of special tokens, those that were taken over with a cached
    prefix (they were counted before), and position 0. The first token is an attention sink in most models: its row has 140 times
    the median norm in SmolLM2-135M (see Sun et al. 2024, "Massive activations in large language models").
    """

    def __init__(self) -> None:
        self._read = WeakKeyDictionary[RequestLog, int]()  # how many rows of each log were read
        self._learners: dict[ProbeVersion, RangeLearner] = {}

    def follow(self, log: RequestLog) -> None:
        """Learn from this log too, as long as it exists."""
        self._read[log] = 0

    def learn(self, probes: Collection[ProbeVersion]) -> None:
        """Read at most 1,024 new rows, newest requests first.

        Args:
            probes: All loaded probes without a range. What was learnt about others is forgotten.
        """
        self._learners = {probe: self._learners.get(probe) or RangeLearner() for probe in probes}
        room = _ROWS if self._learners else 0
        for log in reversed(list(self._read)):
            if room <= 0:
                return
            room -= self._learn_from(log, room)

    def facts(self, probe: ProbeVersion) -> RangeFacts:
        """Return the range of a probe, and how far it is learnt."""
        return self._learners.get(probe, RangeLearner()).facts()

    def _learn_from(self, log: RequestLog, room: int) -> int:
        a = self._read[log]
        b = min(len(log.scores), a + room)
        if not log.running and b == len(log.scores):
            del self._read[log]
        else:
            self._read[log] = b
        if a < b:
            columns = log.scores.columns_over(a, b).probes
            values = log.scores.values(a, b, columns)[_ordinary(log, a, b)]
            for i, version in enumerate(columns.keys):
                if version in self._learners:
                    self._learners[version].add(values[:, i])
        return b - a


def _ordinary(log: RequestLog, a: int, b: int) -> np.ndarray:
    """Return which rows of `a .. b` a range is learnt from: bool [b - a]."""
    special = np.array([token in log.special for token in log.tokens[a:b]], bool)
    ordinary: np.ndarray = log.scores.computed_here(a, b) & ~special & (np.arange(a, b) > 0)
    return ordinary
