"""Division of a gap between two tokens into named parts.

    start                                                                                          end
    │ scheduling │ other_passes │ preparing │ pass │ publishing │ sampling │ delivery │ gateway │ send_buffer │

A part lasts from the border before it, or from the start of the gap if that is later, to its own border. So the parts never
overlap, and with `unexplained_ns` they sum to the gap, whatever the stamps say. Time that lies between two known borders, with a
border between them that is not known, is unexplained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actscope.metrics.timeline.stamps import TimedPass, TokenStamps

#: What each part means, in the order of a token's way.
PARTS: dict[str, str] = {
    "request": "the gateway read the request and sent it to the engine",
    "queue": "the request waited in the engine for its first pass",
    "scheduling": "the engine did other work before it began the token's pass",
    "other_passes": "the engine ran passes that the request had no part in",
    "preparing": "the engine prepared the token's pass",
    "pass": "the model computed the token's pass, with all requests in it",
    "publishing": "the rows of the pass were labeled and put into the ring",
    "sampling": "the engine drew the tokens of the pass",
    "delivery": "the token was on its way from the engine to the gateway",
    "gateway": "the gateway added scores to the token, and had other work",
    "send_buffer": "the token lay in the gateway's send buffer, because the client's side had not taken it",
}

#: A border: the part that ends there, and when (0: not known).
Border = tuple[str, int]


@dataclass(frozen=True, slots=True)
class NamedPart:
    """A part of a gap: its name, one of `PARTS`, and where it lies on CLOCK_MONOTONIC, in nanoseconds."""

    name: str
    start_ns: int
    end_ns: int

    @property
    def ns(self) -> int:
        """Return its length in nanoseconds."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two tokens, or between a request and its first token.

    Attributes:
        stamps: The times of the token at its end.
        parts: Its parts, in order. A name may occur several times.
        unexplained_ns: What is left over. It is no part.
        others: Passes without the request that ran meanwhile.
    """

    stamps: TokenStamps
    parts: tuple[NamedPart, ...]
    unexplained_ns: int
    others: tuple[TimedPass, ...] = ()

    @property
    def ns(self) -> int:
        """Return its length in nanoseconds: the sum of its parts and of what is unexplained."""
        return self.stamps.end_ns - self.stamps.start_ns

    @property
    def explained(self) -> float:
        """Return the share of it that the parts explain, 0 to 1; 1 for a gap of no length."""
        return 1 - self.unexplained_ns / self.ns if self.ns else 1.0

    def sums(self) -> dict[str, int]:
        """Return the length of each part that occurs, in nanoseconds, in the order of `PARTS`."""
        found = {name: sum(part.ns for part in self.parts if part.name == name) for name in PARTS}
        return {name: ns for name, ns in found.items() if ns}


def divide(stamps: TokenStamps, passes: Sequence[TimedPass] = ()) -> Gap:
    """Divide the gap before a token.

    Args:
        stamps: The times of the token. A gap that ends before it starts has no length.
        passes: Passes of the engine that may lie in the gap and that the request had no part in, in order. Those in `stamps` are
            left out.

    Returns:
        The gap. Its parts and `unexplained_ns` sum to its length.
    """
    start, end = stamps.start_ns, max(stamps.start_ns, stamps.end_ns)
    if end != stamps.end_ns:
        return Gap(_without_length(stamps), (), 0)
    parts = between(start, end, borders_of(stamps))
    own = {one.number for one in stamps.passes}
    others = [one for one in passes if one.number not in own and one.scheduled_ns < end and one.over_ns > start]
    divided = [piece for part in parts for piece in _around(part, others)]
    return Gap(stamps, tuple(divided), end - start - sum(part.ns for part in divided), tuple(others))


def _without_length(stamps: TokenStamps) -> TokenStamps:
    return TokenStamps(stamps.index, stamps.start_ns, stamps.start_ns, stamps.where, stamps.passes)


def borders_of(stamps: TokenStamps) -> list[Border]:
    """Return the borders on the way of a token, in order."""
    is_first = stamps.index == 0
    borders: list[Border] = [("request", stamps.asked_ns)] if is_first and stamps.asked_ns else []
    passes = _possible(stamps)
    for one in passes:
        borders += [("queue" if is_first and one is passes[0] else "scheduling", one.scheduled_ns)]
        borders += [("preparing", one.begun_ns), ("pass", one.ended_ns)]
        borders += _after_pass(one, draws=one is passes[-1])
    if not passes:
        borders.append(("scheduling", 0))
    if stamps.where == "client":
        borders += [("delivery", stamps.read_ns), ("gateway", stamps.sent_ns), ("send_buffer", stamps.drained_ns)]
    return borders


def _possible(stamps: TokenStamps) -> Sequence[TimedPass]:
    """Return the passes, or none if the last one began after the token had left it: then it did not draw the token."""
    arrived = stamps.read_ns if stamps.where == "client" else stamps.end_ns
    if stamps.passes and arrived and stamps.passes[-1].begun_ns > arrived:
        return ()
    return stamps.passes


def _after_pass(one: TimedPass, *, draws: bool) -> list[Border]:
    if not draws and not one.sampled_ns:  # a part of a prompt, from which no token is drawn
        return [("publishing", one.published_ns)]
    if one.published_ns > one.sampled_ns > 0:  # drafts are published once it is known which were accepted
        return [("publishing", one.sampling_ns), ("sampling", one.sampled_ns), ("publishing", one.published_ns)]
    return [("publishing", one.sampling_ns), ("sampling", one.sampled_ns)]


def between(start_ns: int, end_ns: int, borders: Iterable[Border]) -> list[NamedPart]:
    """Return the parts of `start_ns .. end_ns` between known borders.

    No border lies behind one that follows it: a later one is the more certain, since it was crossed all the same. (On a GPU a
    token may have been delivered before its rows are seen on the host.)
    """
    bounded: list[tuple[str, int | None]] = []
    limit = end_ns
    for name, until in reversed(list(borders)):
        limit = min(limit, until) if until else limit
        bounded.append((name, limit if until else None))
    parts, cursor, is_whole = [], start_ns, True
    for name, known in reversed(bounded):
        if known is None:
            is_whole = False
            continue
        if known > cursor:
            if is_whole:
                parts.append(NamedPart(name, cursor, known))
            cursor = known
        is_whole = True
    return parts


def _around(part: NamedPart, others: Sequence[TimedPass]) -> list[NamedPart]:
    """Return a waiting part divided into the passes of other requests that ran in it, and the rest."""
    if part.name not in ("queue", "scheduling"):
        return [part]
    pieces, cursor = [], part.start_ns
    for one in others:
        begin, end = max(cursor, one.scheduled_ns), min(part.end_ns, one.over_ns)
        if end <= begin:
            continue
        pieces += [NamedPart(part.name, cursor, begin)] if begin > cursor else []
        pieces.append(NamedPart("other_passes", begin, end))
        cursor = end
    return [*pieces, NamedPart(part.name, cursor, part.end_ns)] if part.end_ns > cursor else pieces
