"""The timeline of a request from its log and from the passes of its engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from actscope.clock import clock_pair
from actscope.gateway.scores.pass_ledger import PassLedger, timed
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.timeline.schemas import GapPart, GapPass, Timeline, TimelineClock, TokenGap
from actscope.metrics.timeline.parts import Gap, divide
from actscope.metrics.timeline.sentence import sentence
from actscope.metrics.timeline.stamps import TimedPass, TokenStamps, Where

#: Most tokens of one answer: dividing a gap takes about 30 microseconds.
MOST_TOKENS = 4096
#: Number of tokens from which on a median says something.
_MEDIAN_FROM = 3


@dataclass(frozen=True)
class TimelineSource:
    """What a timeline is made of. The log is only read, and only what is appended to it may change meanwhile.

    Attributes:
        log: The log of the request.
        rows: The passes of its engine since it began, as rows of a ledger; None: they are not known.
    """

    log: RequestLog
    rows: np.ndarray | None

    @classmethod
    def of(cls, log: RequestLog, ledger: PassLedger | None) -> TimelineSource:
        """Take the passes out of the engine's ledger. On the event loop's thread."""
        until = log.ended_ns or clock_pair().monotonic_ns
        return cls(log, None if ledger is None else ledger.between(log.began_ns, until))

    @cached_property
    def passes(self) -> dict[int, TimedPass]:
        """Return the passes by number, in order."""
        return {} if self.rows is None else {one.number: one for one in timed(self.rows)}

    @property
    def where(self) -> Where:
        """Return where the gaps are measured."""
        return "client" if self.log.times.n_chunks else "engine"

    def stamps(self) -> Iterator[TokenStamps]:
        """Return the times of the tokens that are at the end of their way, up to the first one that is not."""
        first = self.log.n_prompt or 0
        start = self.log.began_ns
        for position in range(first, len(self.log.tokens)):
            found = (
                self._client(position, first, start) if self.where == "client" else self._engine(position, first, start)
            )
            if found is None:
                return
            yield found
            start = found.end_ns

    def _client(self, position: int, first: int, start_ns: int) -> TokenStamps | None:
        log, chunk = self.log, self.log.times.chunk_of(position)
        if chunk is None or not chunk.drained_ns:
            return None
        asked = log.times.asked_ns if position == first else 0
        return TokenStamps(
            *(position - first, start_ns, chunk.drained_ns, "client", self._passes(position, first)),
            *(asked, chunk.read_ns, chunk.sent_ns, chunk.drained_ns),
        )

    def _engine(self, position: int, first: int, start_ns: int) -> TokenStamps | None:
        passes = self._passes(position, first)
        if not passes or not passes[-1].sampled_ns:
            return None
        asked = self.log.times.asked_ns if position == first else 0
        begin = passes[0].scheduled_ns if position == first and not asked else start_ns
        return TokenStamps(position - first, begin, passes[-1].sampled_ns, "engine", passes, asked)

    def _passes(self, position: int, first: int) -> Sequence[TimedPass]:
        """Return the passes since the token before; none if the one that drew this token is not known any more."""
        times = self.log.times
        numbers = times.first_passes(position) if position == first else times.passes_of(position)
        found = [self.passes.get(number) for number in numbers]
        return [one for one in found if one is not None] if found and found[-1] is not None else []


def timeline_of(source: TimelineSource, first: int, limit: int) -> Timeline:
    """Return the timeline of the tokens `first .. first + limit - 1` of a request. Takes time: run it on a thread.

    Args:
        source: See `TimelineSource`.
        first: Index of the first token.
        limit: Most tokens; at most `MOST_TOKENS`.
    """
    log, known = source.log, list(source.stamps())
    lengths = [one.end_ns - one.start_ns for one in known]
    usual = int(median(lengths[1:])) if len(lengths) > _MEDIAN_FROM else None
    own = log.times.all_passes()
    passes = [one for number, one in source.passes.items() if number not in own]
    gaps = [divide(one, _near(passes, one)) for one in known[first : first + limit]]
    pair = clock_pair()
    return Timeline(
        request=log.request,
        state=log.state,
        model=log.model,
        measured_at=source.where,
        clock=TimelineClock(monotonic_ns=pair.monotonic_ns, wall_ns=pair.wall_ns, boot_id=pair.boot_id),
        completion_tokens=log.completion_tokens,
        median_gap_ns=usual,
        slowest=_slowest(lengths),
        tokens=[_token(log, gap, usual) for gap in gaps],
    )


def _slowest(lengths: Sequence[int]) -> int | None:
    return max(range(min(1, len(lengths) - 1), len(lengths)), key=lambda i: lengths[i]) if lengths else None


def _near(passes: Sequence[TimedPass], stamps: TokenStamps) -> Sequence[TimedPass]:
    """Return the passes that may lie in a gap: passes begin in order."""
    low, high = 0, len(passes)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if passes[middle].scheduled_ns < stamps.end_ns else (low, middle)
    stop, begin = low, low
    while begin and passes[begin - 1].over_ns > stamps.start_ns:
        begin -= 1
    return passes[begin:stop]


def _token(log: RequestLog, gap: Gap, usual_ns: int | None) -> TokenGap:
    stamps = gap.stamps
    position = (log.n_prompt or 0) + stamps.index
    token_id = log.tokens[position]
    return TokenGap(
        index=stamps.index,
        position=position,
        token_id=token_id,
        text=log.texts.own(token_id)[0],
        start_ns=stamps.start_ns,
        gap_ns=gap.ns,
        parts=[GapPart(name=part.name, start_ns=part.start_ns, ns=part.ns) for part in gap.parts],
        unexplained_ns=gap.unexplained_ns,
        why=sentence(gap, usual_ns),
        passes=[
            *(_pass(one, own=True) for one in stamps.passes),
            *(_pass(one, own=False) for one in gap.others),
        ],
    )


def _pass(one: TimedPass, *, own: bool) -> GapPass:
    return GapPass(
        number=one.number,
        own=own,
        start_ns=one.scheduled_ns,
        ns=max(one.over_ns - one.scheduled_ns, 0),
        requests=one.n_requests,
        rows=one.n_rows,
        prompt_rows=one.n_prompt_rows,
    )
