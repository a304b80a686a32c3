"""The tokens of a report: how the gaps between them divide into parts, and the slowest ones with the sentence that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actscope.metrics.timeline.answer import AnsweredTimeline
from actscope.metrics.timeline.parts import PARTS
from actscope.metrics.timeline.sentence import UNEXPLAINED

_MOST_SLOWEST = 12
#: Groups of gaps by length: name, and the quantiles between which they lie.
_GROUPS = (
    ("the fastest half", 0.0, 0.5),
    ("the next 40 %", 0.5, 0.9),
    ("the next 9 %", 0.9, 0.99),
    ("the slowest 1 %", 0.99, 1.0),
)


@dataclass(frozen=True, slots=True)
class SlowToken:
    """A token with a long gap, and why it came when it came."""

    request: str
    index: int
    text: str
    gap_ns: int
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class TokenSeries:
    """All tokens of some requests that have a gap, n of them.

    Attributes:
        requests: Number of requests.
        together: Number of tokens that came together with the one before, which have no gap.
        ends: When each token was at the end of its way, wall seconds, float64 [n].
        gaps: Length of its gap, int64 [n] ns. Those of first tokens, from the request on, are among them.
        parts: Of each part that occurs, its length in each gap, int64 [n] ns, in the order of a token's way; then what is
            unexplained. For each token they sum to its gap.
        slowest: The tokens with the longest gaps, longest first.
        median_ns: Median of the gaps.
    """

    requests: int
    together: int
    ends: np.ndarray
    gaps: np.ndarray
    parts: Mapping[str, np.ndarray]
    slowest: Sequence[SlowToken]
    median_ns: int

    def groups(self) -> list[tuple[str, np.ndarray]]:
        """Return the gaps in groups from the fastest to the slowest: a name, and their indices, int64 [m], m > 0."""
        order = np.argsort(self.gaps, kind="stable")
        bounds = [(name, round(low * len(order)), round(high * len(order))) for name, low, high in _GROUPS]
        return [(f"{name} ({stop - start:,})", order[start:stop]) for name, start, stop in bounds if stop > start]


def token_series(timelines: Sequence[AnsweredTimeline]) -> TokenSeries | None:
    """Return the tokens of timelines; None if none has a gap. A request that is there twice counts as its last answer."""
    latest = list({one.request: one for one in timelines}.values())
    every = [(found, token) for found in latest for token in found.tokens]
    timed = [(found, token) for found, token in every if token.gap_ns]
    if not timed:
        return None
    lengths = {name: np.zeros(len(timed), np.int64) for name in (*PARTS, UNEXPLAINED)}
    for i, (_, token) in enumerate(timed):
        for part in token.parts:
            lengths[part.name][i] += part.ns
        lengths[UNEXPLAINED][i] = token.unexplained_ns
    gaps = np.array([token.gap_ns for _, token in timed], np.int64)
    slowest = [timed[i] for i in np.argsort(-gaps, kind="stable")[:_MOST_SLOWEST]]
    return TokenSeries(
        sum(bool(one.tokens) for one in latest),
        len(every) - len(timed),
        np.array([(token.end_ns + one.clock.wall_ns - one.clock.monotonic_ns) / 1e9 for one, token in timed]),
        gaps,
        {name: ns for name, ns in lengths.items() if ns.any()},
        [SlowToken(one.request, token.index, token.text, token.gap_ns, token.why) for one, token in slowest],
        int(np.median(gaps)),
    )
