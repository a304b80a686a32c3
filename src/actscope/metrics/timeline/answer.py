"""The timeline of a request as the gateway answers it (`GET /v1/actscope/requests/{id}/timeline`), and files of such answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from actscope.errors import MetricsError
from actscope.metrics.timeline.parts import PARTS
from actscope.runtime.decoding import decode_json
from actscope.runtime.regular_files import read_regular

#: Most bytes of a file of answers. One of 4,096 tokens has some 5 MB.
_MOST_FILE_BYTES = 1 << 30
#: Times and lengths in nanoseconds, such that their sums stay within 64 bits.
Ns = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class AnsweredPart(msgspec.Struct, frozen=True):
    """A part of a gap."""

    name: str
    start_ns: Ns
    ns: Ns


class AnsweredPass(msgspec.Struct, frozen=True):
    """A pass of the engine that lies in a gap; `own`: the request takes part in it."""

    number: int
    own: bool
    start_ns: Ns
    ns: Ns
    requests: int = 0
    rows: int = 0
    prompt_rows: int = 0


class AnsweredToken(msgspec.Struct, frozen=True):
    """A token and the gap before it."""

    index: int
    text: str
    start_ns: Ns
    gap_ns: Ns
    parts: list[AnsweredPart]
    unexplained_ns: Ns
    why: str
    position: int = 0
    passes: list[AnsweredPass] = []

    @property
    def end_ns(self) -> int:
        """Return when the token was at the end of its way."""
        return self.start_ns + self.gap_ns


class AnsweredClock(msgspec.Struct, frozen=True):
    """One instant on both clocks, and the boot for which the times of an answer are valid."""

    boot_id: str
    monotonic_ns: Ns = 0
    wall_ns: Ns = 0


class AnsweredTimeline(msgspec.Struct, frozen=True):
    """The timeline of one request. Times are nanoseconds of CLOCK_MONOTONIC."""

    clock: AnsweredClock
    request: str
    state: str
    measured_at: str
    completion_tokens: int
    slowest: int | None
    tokens: list[AnsweredToken]
    model: str = ""
    median_gap_ns: Ns | None = None


def checked(found: AnsweredTimeline, where: str) -> AnsweredTimeline:
    """Return an answer whose tokens are in order and whose parts lie in their gaps and sum to them.

    Raises:
        MetricsError: They do not.
    """
    cursor = 0
    for token in found.tokens:
        at = f"{where}: token {token.index} of request {found.request}"
        if token.start_ns < cursor:
            raise MetricsError(f"{at}: expected a gap that begins after the one before, found one that begins earlier")
        cursor = token.start_ns
        for part in token.parts:
            if part.name not in PARTS:
                raise MetricsError(f"{at}: expected parts named {', '.join(PARTS)}, found {part.name[:60]!r}")
            if part.start_ns < cursor:
                raise MetricsError(f"{at}: expected parts that do not overlap, found that {part.name} begins earlier")
            cursor = part.start_ns + part.ns
        if cursor > token.end_ns or sum(part.ns for part in token.parts) + token.unexplained_ns != token.gap_ns:
            raise MetricsError(f"{at}: expected parts that sum to its gap, found others: ask the gateway again")
        cursor = token.end_ns
    return found


def read_timelines(path: Path) -> list[AnsweredTimeline]:
    """Read a file of answers: one JSON object, as `actscope why REQUEST --json` prints it, or several, one a line.

    Raises:
        MetricsError: The file cannot be read, is larger than 1 GiB, or has something else in it.
    """
    try:
        data = read_regular(path, _MOST_FILE_BYTES, MetricsError)
    except FileNotFoundError as error:
        raise MetricsError(f"{path}: there is no such file: actscope why REQUEST --json > {path}") from error
    found = [
        checked(decode_json(one, AnsweredTimeline, MetricsError, where), where) for where, one in _objects(path, data)
    ]
    if not found:
        raise MetricsError(f"{path}: is empty. Expected what `actscope why REQUEST --json` prints")
    return found


def _objects(path: Path, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the objects of a file: its lines, or the whole of it if its first line is none (it was formatted)."""
    lines = [(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()]
    if lines and not lines[0][1].rstrip().endswith(b"}"):
        yield str(path), data
        return
    for number, line in lines:
        yield f"{path}, line {number}", line
