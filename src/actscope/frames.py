"""The data model: steps, spans and frames, which assign every row to a request.

A *step* is one forward pass. It is divided into *spans*, one for each request that took part. A *frame* holds the
rows that the step produced at one site, in the order of the spans.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, Protocol

import numpy as np

#: Name of the frame whose rows are probe scores (one column per probe slot) instead of activations.
SCORES = "probes"


class RowFlag(IntFlag):
    """Kind of a row; 0 is the row of an ordinary generated token."""

    PREFILL = 1  # the token belongs to the prompt
    RECOMPUTED = 2  # computed again after preemption
    REJECTED = 4  # a draft token that was not accepted
    AFTER_EOS = 8  # computed after the request had ended
    CACHED = 16  # not computed for this request: taken over from the request that filled the prefix cache


#: Flags of rows that belong to no token of their request's text: rejected drafts, and rows computed after its end.
SPURIOUS_ROWS = int(RowFlag.REJECTED | RowFlag.AFTER_EOS)


class SpanFlag(IntFlag):
    """State of the request of a span."""

    FIRST = 1  # the request's first span
    END = 2  # the request has ended; such a span may have no rows
    ABORTED = 4  # with END: the request was cancelled
    WISH = 8  # per-request recording options are delivered out of band; wait for them before using the rows


NO_FLAGS = SpanFlag(0)

#: One row's label, as stored in rings and recordings.
ROW_META = np.dtype([("position", "<i8"), ("token_id", "<i4"), ("flags", "<u4"), ("span", "<u8"), ("step", "<u8")])


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one request in a step: a run of consecutive positions.

    Attributes:
        request: Id of the request.
        first_position: Position of the first row in the request; the rows have positions `first_position` to
            `first_position + n_rows - 1`. For an END span without rows, a value above 0 is the request's final length
            in tokens: rows at or after that position belong to rejected drafts.
        n_rows: Number of rows.
        offset: Index of the first row in the step.
        flags: State of the request.
        n_prompt: Length of the prompt in tokens; 0 if unknown.
    """

    request: str
    first_position: int
    n_rows: int
    offset: int = 0
    flags: SpanFlag = NO_FLAGS
    n_prompt: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass.

    Attributes:
        number: Number of the step, from 1.
        time_ns: CLOCK_MONOTONIC at publication, in nanoseconds.
        spans: Which rows belong to which request.
        meta: ROW_META [n_rows], one label per row. Its `span` field counts from the start of this step.
        generation: Generation of the probe table in force (see `actscope.probes.bank`).
    """

    number: int
    time_ns: int
    spans: tuple[Span, ...]
    meta: np.ndarray
    generation: int = 0

    @property
    def n_rows(self) -> int:
        return len(self.meta)


@dataclass(frozen=True, slots=True)
class Frame:
    """The rows of one step at one site.

    Attributes:
        site: Name of the site, or `SCORES`.
        rows: [step.n_rows, d], a numpy array or a torch tensor on the CPU.
        dtype: The rows' element type if the array's dtype cannot express it: "bfloat16" for uint16 arrays of its bits.
    """

    site: str
    rows: Any
    dtype: str | None = None


@dataclass(slots=True)
class SinkStats:
    """Exact counts of the steps and rows that a sink accepted, and of the rows that it dropped."""

    steps: int = 0
    rows: int = 0
    dropped_rows: int = 0


class Sink(Protocol):
    """Consumer of the frames of each step.

    `write` is called on the model's thread, so it must not wait for a reader.
    """

    def write(self, step: Step, frames: list[Frame]) -> None: ...

    def stats(self) -> SinkStats: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TeeSink:
    """A sink that passes every step to several sinks, in order. The `write` of each of them must not raise.

    The sinks share the rows, so none may modify them. `stats` returns the first sink's.
    """

    sinks: tuple[Sink, ...]

    def write(self, step: Step, frames: list[Frame]) -> None:
        for sink in self.sinks:
            sink.write(step, frames)

    def stats(self) -> SinkStats:
        return self.sinks[0].stats()

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


@dataclass
class ListSink:
    """A sink that keeps a copy of every step in memory, for tests and short offline captures."""

    steps: list[tuple[Step, list[Frame]]] = field(default_factory=list)

    def write(self, step: Step, frames: list[Frame]) -> None:
        self.steps.append(
            (step, [Frame(f.site, f.rows.copy() if isinstance(f.rows, np.ndarray) else f.rows.clone()) for f in frames])
        )

    def stats(self) -> SinkStats:
        return SinkStats(len(self.steps), sum(s.n_rows for s, _ in self.steps))

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
