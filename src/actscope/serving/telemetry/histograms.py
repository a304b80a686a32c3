"""Histograms of many values at a time: vectorised, with a bounded number of series, and with an exemplar for each bucket.

`prometheus_client.Histogram` takes one value a call, about 1 µs each. Here a call takes all values of a request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from prometheus_client.core import Exemplar, HistogramMetricFamily

#: Value of the labels of the series that stands for all that came after `most_series` others.
OTHER = "~other"
#: Characters of an exemplar's labels, name and value together, that OpenMetrics allows.
_MOST_EXEMPLAR = 128
_EXEMPLAR = "request_id"


@dataclass(slots=True)
class _Series:
    counts: np.ndarray
    total: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)


class Histograms:
    """A family of histograms with the same buckets, one series for each combination of label values.

    Not thread-safe: one thread at a time.

    Args:
        name: Name of the family.
        help: What is observed, in one sentence.
        labels: Names of the labels.
        edges: Upper ends of the buckets, ascending; a value belongs to the first bucket whose end is not below it.
        most_series: Number of series from which on further label values are counted together, under `OTHER`.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str], edges: Sequence[float], most_series: int) -> None:
        self._name, self._help, self._labels = name, help, tuple(labels)
        self._edges = np.array(edges, np.float64)
        self._ends = ["+Inf" if edge == float("inf") else repr(float(edge)) for edge in (*edges, float("inf"))]
        self._most = most_series
        self._series: dict[tuple[str, ...], _Series] = {}

    def add(self, labels: tuple[str, ...], values: np.ndarray, request: str = "") -> None:
        """Count values. The last one in each bucket becomes that bucket's exemplar.

        Args:
            labels: Value of each label.
            values: float [n]; those that are not finite are skipped.
            request: Id of the request that they belong to; "" for no exemplar.
        """
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return
        series = self._of(labels)
        at = np.searchsorted(self._edges, values, side="left")
        series.counts += np.bincount(at, minlength=len(self._ends))
        series.total += float(values.sum())
        if request and len(request) + len(_EXEMPLAR) <= _MOST_EXEMPLAR:
            last = np.full(len(self._ends), -1)
            last[at] = np.arange(len(at))  # of several values for one bucket the last stays
            now = time.time()
            for i in np.flatnonzero(last >= 0).tolist():
                series.exemplars[i] = Exemplar({_EXEMPLAR: request}, float(values[last[i]]), now)

    def _of(self, labels: tuple[str, ...]) -> _Series:
        if labels not in self._series and len(self._series) >= self._most:
            labels = (OTHER,) * len(labels)
        if labels not in self._series:
            self._series[labels] = _Series(np.zeros(len(self._ends), np.int64))
        return self._series[labels]

    def family(self) -> HistogramMetricFamily:
        """Return the histograms. With edges below 0 they have no sum, which could fall: OpenMetrics forbids it."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, series in self._series.items():
            counts = np.cumsum(series.counts).tolist()
            buckets = [
                (end, count, series.exemplars[i]) if i in series.exemplars else (end, count)
                for i, (end, count) in enumerate(zip(self._ends, counts, strict=True))
            ]
            family.add_metric(labels, buckets, series.total)
        return family
