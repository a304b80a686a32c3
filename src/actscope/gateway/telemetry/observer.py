"""What is learnt from request logs for the metrics: distributions of scores, tokens over thresholds, times of tokens.

The path of a token does no work for it. Logs hold every score and every time; they are read when a request ends and when somebody
scrapes, in whole arrays, and counted on another thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from prometheus_client.core import CounterMetricFamily, Metric

from actscope.gateway.scores.probe_table import Columns
from actscope.gateway.scores.request_log import RequestLog
from actscope.serving.telemetry.histograms import OTHER, Histograms

#: Probes that have series of their own, over the gateway's life. Further ones are counted together.
MOST_PROBES = 256

_UP = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0,
)  # fmt: skip
_DOWN = (0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
#: Ends of the buckets of scores: the same for all probes, since a probe may be a probability, a logit or a projection.
SCORE_EDGES = (*(-end for end in reversed(_DOWN)), 0.0, *_UP)
#: Ends of the buckets of times, in seconds.
SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0,
)  # fmt: skip

_SOURCES = 2
_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Piece:
    """New rows of a log: `counted` says which of them count."""

    request: str
    columns: Columns
    values: np.ndarray
    counted: np.ndarray
    tokens: np.ndarray
    special: frozenset[int]


@dataclass(frozen=True, slots=True)
class _EndedRequest:
    """Tokens and times of a request. `times` has the arrivals of generated tokens, in seconds from its start."""

    request: str
    source: str
    done: bool
    seconds: float
    times: np.ndarray
    prompt_tokens: int
    completion_tokens: int


class LogObserver:
    """Counts the scores and times of all request logs, each once.

    A probe that is masked on special tokens has no scores of those. Rows that were taken over with a cached prefix are left out:
    they were counted with the request that computed them. Rows of a log that follows its rows wait for the end of the request, as
    its answer may still disagree.
    """

    def __init__(self) -> None:
        self._read = WeakKeyDictionary[RequestLog, int]()
        self._ended: list[RequestLog] = []
        self._lock = asyncio.Lock()
        self._scores = Histograms(
            "actscope_probe_score",
            "Scores of a probe, one for each token whose row was computed.",
            ("probe",),
            SCORE_EDGES,
            MOST_PROBES,
        )
        self._over: Counter[str] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        kinds = {
            "request": "Time from the start of a request to its end, in seconds; of those that ended normally.",
            "first_token": "Time from the start of a request to its first generated token, in seconds.",
            "token_gap": "Time between two arrivals of generated tokens of a request, in seconds; several may arrive at once.",
        }
        self._times = {
            kind: Histograms(f"actscope_{kind}_seconds", help, ("source",), SECONDS, _SOURCES)
            for kind, help in kinds.items()
        }

    def ended(self, log: RequestLog) -> None:
        """Note that a log has ended. It is counted within a second, or before the next scrape."""
        self._ended.append(log)

    async def keep_up(self) -> None:
        """Count what has ended once a second, until cancelled, so that ended logs are not held."""
        while True:
            await asyncio.sleep(_WAIT_SECONDS)
            if self._ended:
                await self.catch_up()

    async def catch_up(self) -> None:
        """Count the logs that have ended."""
        async with self._lock:
            await self._catch_up(())

    async def families(self, running: Iterable[RequestLog]) -> list[Metric]:
        """Count all that is new in logs that have ended and in these that run, and return the families."""
        async with self._lock:
            await self._catch_up([log for log in running if log.running and not _may_change(log)])
            return await asyncio.to_thread(lambda: list(self._families()))

    async def _catch_up(self, running: Iterable[RequestLog]) -> None:
        ended, self._ended = self._ended, []
        pieces = [self._new_rows(log) for log in (*ended, *running)]
        requests = [_ended_request(log) for log in ended]
        if pieces:
            await asyncio.to_thread(self._count, pieces, requests)

    def _families(self) -> Iterator[Metric]:
        yield self._scores.family()
        over = CounterMetricFamily(
            "actscope_probe_over_threshold_tokens",
            "Tokens whose score is at or over the threshold of the probe.",
            labels=("probe",),
        )
        for probe, n in self._over.items():
            over.add_metric((probe,), n)
        yield over
        tokens = CounterMetricFamily(
            "actscope_request_tokens", "Tokens of the requests that have ended.", labels=("source", "kind")
        )
        for labels, n in self._tokens.items():
            tokens.add_metric(labels, n)
        yield tokens
        yield from (one.family() for one in self._times.values())

    def _new_rows(self, log: RequestLog) -> _Piece:
        """Return what is new in a log. Its rows do not change any more, so another thread may read them."""
        a, b = self._read.get(log, 0), len(log.scores)
        self._read[log] = b
        columns = log.scores.columns_over(a, b).probes
        values = log.scores.values(a, b, columns) if a < b else np.zeros((0, columns.width), np.float32)
        return _Piece(
            log.request, columns, values, log.scores.computed_here(a, b), np.array(log.tokens[a:b]), log.special
        )

    def _count(self, pieces: Iterable[_Piece], requests: Iterable[_EndedRequest]) -> None:
        for piece in pieces:
            self._count_scores(piece)
        for one in requests:
            self._tokens[one.source, "prompt"] += one.prompt_tokens
            self._tokens[one.source, "completion"] += one.completion_tokens
            if one.done:
                self._times["request"].add((one.source,), np.array([one.seconds]), one.request)
                self._times["first_token"].add((one.source,), one.times[:1], one.request)
                self._times["token_gap"].add((one.source,), np.diff(one.times), one.request)

    def _count_scores(self, piece: _Piece) -> None:
        if not piece.counted.any():
            return
        ordinary = piece.counted & ~np.isin(piece.tokens, list(piece.special))
        columns = piece.columns
        for i, (probe, masked, threshold) in enumerate(
            zip(columns.ids, columns.masks, columns.thresholds, strict=True)
        ):
            scores = piece.values[ordinary if masked else piece.counted, i]
            self._scores.add((probe,), scores, piece.request)
            if threshold is not None:
                self._over[self._shown(probe)] += int(np.count_nonzero(scores >= threshold))

    def _shown(self, probe: str) -> str:
        return probe if probe in self._over or len(self._over) < MOST_PROBES else OTHER


def _ended_request(log: RequestLog) -> _EndedRequest:
    prompt = log.n_prompt or 0
    return _EndedRequest(
        log.request, log.source, log.state == "done", (log.ended_ns - log.began_ns) / 1e9,
        log.events.token_seconds(prompt), prompt, log.completion_tokens,
    )  # fmt: skip


def _may_change(log: RequestLog) -> bool:
    return log.follows_rows and log.source == "gateway"
