"""Requests, passes, tokens and scores of a trace, from timelines that a gateway has answered."""

from __future__ import annotations

from collections.abc import Mapping

from actscope.metrics.timeline.answer import AnsweredPass, AnsweredTimeline, AnsweredToken
from actscope.metrics.trace.events import Shown, TraceEvent, TraceEvents

#: Scores by position and probe.
Scores = Mapping[int, Mapping[str, float]]


class RequestTracks:
    """Adds requests to a trace. A pass that several requests took part in is added once.

        request ──▶ pass ──▶ token ──▶ score          one flow a token; that of the first one begins at the request

    Passes are added by `close`, when all are known.
    """

    def __init__(self, events: TraceEvents) -> None:
        self._events = events
        self._root = events.track("requests")
        self._passes: dict[tuple[str, int, int], TraceEvent] = {}
        self._chains: list[list[TraceEvent]] = []
        self.tokens: list[tuple[AnsweredToken, TraceEvent]] = []

    def add(self, found: AnsweredTimeline, scores: Scores | None = None) -> None:
        """Add a request.

        Args:
            found: Its timeline. Without tokens it is left out.
            scores: Its scores; None: they are not known.
        """
        if not found.tokens:
            return
        events = self._events
        home = events.track(found.request, self._root)
        first, last = found.tokens[0], found.tokens[-1]
        shown: dict[str, Shown] = {
            "request": found.request, "state": found.state, "model": found.model, "tokens": found.completion_tokens,
            "measured_at": found.measured_at,
        }  # fmt: skip
        begin = events.slice(events.track("request", home), first.start_ns, last.end_ns, found.request, shown)
        gaps, tokens = events.track("gaps", home), events.track("tokens", home)
        for token in found.tokens:
            self._gap(gaps, token)
            chain = [begin] if token is first else []
            chain += [self._pass(found, one) for one in token.passes if one.own][-1:]
            for other in token.passes:
                self._pass(found, other)
            shown = {"index": token.index, "position": token.position, "text": token.text, "gap_ns": token.gap_ns}
            arrived = events.instant(tokens, token.end_ns, f"{token.index} {token.text}", shown)
            self.tokens.append((token, arrived))
            self._chains.append([*chain, arrived, *self._scores(home, token, (scores or {}).get(token.position, {}))])

    def _gap(self, track: int, token: AnsweredToken) -> None:
        if not token.gap_ns:
            return
        shown: dict[str, Shown] = {"why": token.why, "gap_ns": token.gap_ns, "unexplained_ns": token.unexplained_ns}
        self._events.slice(track, token.start_ns, token.end_ns, f"{token.index} {token.text}", shown)
        for part in token.parts:
            self._events.slice(track, part.start_ns, part.start_ns + part.ns, part.name, {"ns": part.ns})

    def _pass(self, found: AnsweredTimeline, one: AnsweredPass) -> TraceEvent:
        """Return the slice of a pass, which gets its track when all are known."""
        key = (found.model, one.number, one.start_ns)
        shown: dict[str, Shown] = {
            "number": one.number, "requests": one.requests, "rows": one.rows, "prompt_rows": one.prompt_rows,
        }  # fmt: skip
        end = one.start_ns + one.ns
        known = self._passes.setdefault(key, TraceEvent(0, one.start_ns, end, f"pass {one.number}", shown))
        known.end_ns = max(known.end_ns, end)  # its sampling may have been known to a later answer only
        return known

    def _scores(self, home: int, token: AnsweredToken, row: Mapping[str, float]) -> list[TraceEvent]:
        if not row:
            return []
        events = self._events
        for probe, score in row.items():
            events.counter(events.track(f"score of {probe}", home, unit="score"), token.end_ns, score)
        shown: dict[str, Shown] = dict(row)
        return [events.instant(events.track("scores", home), token.end_ns, f"scores of {token.index}", shown)]

    def close(self) -> None:
        """Add the passes, each model's on a track of its own, and the flows."""
        for model in dict.fromkeys(model for model, _, _ in self._passes):
            own = [one for (of, _, _), one in self._passes.items() if of == model]
            self._events.lanes("passes", self._events.track(f"engine {model}".rstrip()), own)
        for chain in self._chains:
            joined = sorted(
                chain, key=lambda one: one.start_ns
            )  # a pass that is timed late does not turn an arrow round
            if len(joined) > 1:
                self._events.flow(*joined)
