"""What is known of one token: when it crossed the borders of the engine and of the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: Where a gap is measured: at the client's end of the gateway, or in the engine, where the gateway has no stream of the tokens.
Where = Literal["client", "engine"]


class TimedPass(NamedTuple):
    """One pass of an engine. Times are CLOCK_MONOTONIC in nanoseconds; 0: not known. See `frames.PassTimes`.

    Attributes:
        number: The engine's number of the pass.
        scheduled_ns: The engine knew which requests the pass has.
        begun_ns: The model began to compute.
        ended_ns: The model had computed.
        published_ns: The rows were labeled; they go into the ring then.
        sampling_ns: The engine began to draw the tokens of the pass.
        sampled_ns: They were drawn.
        n_rows: Rows of the pass.
        n_prompt_rows: Those of prompts.
        n_requests: Requests of the pass.
    """

    number: int
    scheduled_ns: int
    begun_ns: int
    ended_ns: int
    published_ns: int
    sampling_ns: int
    sampled_ns: int
    n_rows: int = 0
    n_prompt_rows: int = 0
    n_requests: int = 0

    @property
    def over_ns(self) -> int:
        """Return the last time of the pass that is known."""
        return max(self.ended_ns, self.published_ns, self.sampled_ns)


@dataclass(frozen=True, slots=True)
class TokenStamps:
    """Times of one generated token: CLOCK_MONOTONIC in nanoseconds; 0: not known.

    Attributes:
        index: Number of the token in its answer, from 0.
        start_ns: Begin of its gap: when the token before it was at the end of its way, or the request came in.
        end_ns: End of its gap: when it was at the end of its own way.
        where: Where its way ends.
        passes: Passes of its request since the token before, in order; the last one drew the token. Empty: not known.
        asked_ns: Of the first token: when the gateway had sent the request to the engine.
        read_ns: The gateway had read the token from the engine's answer.
        sent_ns: The gateway had given it to its connection with the client, or could not, because that was backed up.
        drained_ns: It had left the connection's send buffer.
    """

    index: int
    start_ns: int
    end_ns: int
    where: Where
    passes: Sequence[TimedPass] = ()
    asked_ns: int = 0
    read_ns: int = 0
    sent_ns: int = 0
    drained_ns: int = 0
