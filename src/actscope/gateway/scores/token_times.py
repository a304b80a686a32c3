"""Times of one request in the gateway: which pass drew each token, and when the token was read, sent and drained."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkTimes:
    """Times of the chunk that brought a token: CLOCK_MONOTONIC in nanoseconds; 0: not yet, or not known."""

    read_ns: int
    sent_ns: int
    drained_ns: int


class TokenTimes:
    """Times of one request, appended in order: 16 bytes for each pass of it, and 32 for each chunk of its answer.

    Tokens are named by their position. A chunk may bring several tokens, and a pass may draw several (drafts).

    Attributes:
        asked_ns: When the gateway had sent the request to the engine, CLOCK_MONOTONIC; 0: it did not.
    """

    __slots__ = ("_drained", "_ends", "_from", "_numbers", "_read", "_sent", "asked_ns")

    def __init__(self) -> None:
        self.asked_ns = 0
        self._from, self._numbers = array("q"), array("q")
        self._ends, self._read, self._sent, self._drained = array("q"), array("q"), array("q"), array("q")

    def see_pass(self, number: int, first_position: int, n_tokens: int) -> None:
        """Note a pass of the request. It draws the tokens behind its first row that no later pass draws.

        Args:
            number: The engine's number of the pass.
            first_position: Position of its first row.
            n_tokens: Number of tokens of the request that are known. A pass that computes some of them again, after a
                preemption, draws none of them.
        """
        first, last = first_position + 1, self._from[-1] if self._from else -1
        self._from.append(first if first > last else max(last, n_tokens))
        self._numbers.append(number)

    def read(self, end: int, now_ns: int) -> None:
        """Note a chunk that brought the tokens before position `end`, as far as no earlier chunk did."""
        self._ends.append(end)
        self._read.append(now_ns)

    def sent(self, n_chunks: int, now_ns: int) -> None:
        """Note that the first `n_chunks` chunks are given to the connection. Those that were before stay as they are."""
        missing = n_chunks - len(self._sent)
        if missing > 0:
            self._sent.extend([now_ns] * missing)

    def drained(self, n_chunks: int, now_ns: int) -> None:
        """Note that the first `n_chunks` chunks have left the send buffer."""
        missing = n_chunks - len(self._drained)
        if missing > 0:
            self._drained.extend([now_ns] * missing)

    @property
    def n_chunks(self) -> int:
        """Return the number of chunks that were read."""
        return len(self._read)

    def chunk_of(self, position: int) -> ChunkTimes | None:
        """Return the times of the chunk that brought a token; None if none did."""
        index = bisect_right(self._ends, position)
        if index == len(self._ends):
            return None
        sent = self._sent[index] if index < len(self._sent) else 0
        return ChunkTimes(self._read[index], sent, self._drained[index] if index < len(self._drained) else 0)

    def passes_of(self, position: int) -> Sequence[int]:
        """Return the numbers of the passes since the token before, up to the one that drew the token at a position.

        The one that drew the token before is among them if it drew both.
        """
        stop = bisect_right(self._from, position)
        start = min(bisect_right(self._from, position - 1), max(stop - 1, 0))
        return list(dict.fromkeys(self._numbers[start:stop]))

    def all_passes(self) -> set[int]:
        """Return the numbers of all passes that the request took part in."""
        return set(self._numbers)

    def first_passes(self, position: int) -> Sequence[int]:
        """Return the numbers of all passes up to the one that drew the token at a position: of the first token."""
        return list(dict.fromkeys(self._numbers[: bisect_right(self._from, position)]))
