"""Timelines of requests, as a gateway would answer them."""

from __future__ import annotations

import msgspec

from actscope.clock import clock_pair
from actscope.metrics.timeline.answer import (
    AnsweredClock,
    AnsweredPart,
    AnsweredPass,
    AnsweredTimeline,
    AnsweredToken,
)

MS = 1_000_000
HERE = clock_pair()


def token(index: int, start_ns: int, number: int, text: str = " a") -> AnsweredToken:
    """A token of a gap of 10 ms: 2 ms waiting, 5 in its pass, 1 on its way; 2 are unexplained."""
    parts = [
        AnsweredPart("scheduling", start_ns, 2 * MS),
        AnsweredPart("pass", start_ns + 2 * MS, 5 * MS),
        AnsweredPart("delivery", start_ns + 9 * MS, MS),
    ]
    passes = [AnsweredPass(number, True, start_ns + 2 * MS, 6 * MS, 2, 9, 0)]
    return AnsweredToken(index, text, start_ns, 10 * MS, parts, 2 * MS, "Because.", 40 + index, passes)


def slowed(one: AnsweredToken) -> AnsweredToken:
    """The same token, which left its send buffer 400 ms later."""
    late = AnsweredPart("send_buffer", one.end_ns, 400 * MS)
    return msgspec.structs.replace(
        one, gap_ns=one.gap_ns + 400 * MS, parts=[*one.parts, late], why="The client was slow."
    )


def timeline(
    request: str, tokens: int = 4, begin: int = HERE.monotonic_ns, boot: str = HERE.boot_id, slow: int = 0
) -> AnsweredTimeline:
    """A request of tokens of 10 ms each. `slow`: the number of one that takes 400 ms longer; 0: none."""
    found: list[AnsweredToken] = []
    for i in range(tokens):
        one = token(i, found[-1].end_ns if found else begin, 100 + i)
        found.append(slowed(one) if slow and i == slow else one)
    clock = AnsweredClock(boot, HERE.monotonic_ns, HERE.wall_ns)
    return AnsweredTimeline(clock, request, "done", "client", tokens, 2, found, "a model", 10 * MS)
