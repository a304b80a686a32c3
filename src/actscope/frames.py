"""The data model: steps, spans and frames, which assign every row to a request.

A *step* is one forward pass. It is divided into *spans*, one for each request that took part. A *frame* holds the
rows that the step produced at one site, in the order of the spans.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np

from actscope.counters import counted, counting

if TYPE_CHECKING:
    from torch import Tensor

#: Rows [n, d]: a numpy array, or a torch tensor on the CPU.
RowArray: TypeAlias = "np.ndarray | Tensor"

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
    HAS_OPTIONS = 8  # per-request recording options are delivered out of band; wait for them before using the rows


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


class PassTimes(NamedTuple):
    """Times of one pass at the borders that its engine crosses anyway: CLOCK_MONOTONIC in nanoseconds; 0: not known.

    A pass is usually published before its tokens are drawn. Its sampling is then told with the next step, in `before_…`, or
    with a step of the same number that has no rows.

    Attributes:
        scheduled_ns: The engine knew which requests the pass has.
        begun_ns: The model began to compute.
        ended_ns: The model had computed, and the rows were on the host.
        sampling_ns: The engine began to draw the tokens of this pass.
        sampled_ns: They were drawn.
        before_sampling_ns: `sampling_ns` of the pass with the number before this one.
        before_sampled_ns: `sampled_ns` of it.
    """

    scheduled_ns: int = 0
    begun_ns: int = 0
    ended_ns: int = 0
    sampling_ns: int = 0
    sampled_ns: int = 0
    before_sampling_ns: int = 0
    before_sampled_ns: int = 0


NO_TIMES = PassTimes()


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass.

    Attributes:
        number: Number of the step, from 1.
        time_ns: CLOCK_MONOTONIC at publication, in nanoseconds.
        spans: Which rows belong to which request.
        meta: ROW_META [n_rows], one label per row. Its `span` field counts from the start of this step.
        generation: Generation of the probe table in force (see `actscope.probes.bank`).
        weights: How often the engine's weights had changed since it loaded them.
        times: When the pass crossed the borders of its engine, as far as the engine tells.
    """

    number: int
    time_ns: int
    spans: tuple[Span, ...]
    meta: np.ndarray
    generation: int = 0
    weights: int = 0
    times: PassTimes = NO_TIMES

    @property
    def n_rows(self) -> int:
        """Return the number of rows of the step at each site."""
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
    rows: RowArray
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class SplitFrame:
    """A frame whose rows come as column blocks [step.n_rows, d_i], side by side. Only rings take it: it spares a copy."""

    site: str
    blocks: tuple[np.ndarray, ...]


@counting("ring")
@dataclass(slots=True)
class SinkStats:
    """Exact counts of the steps and rows that a sink accepted, and of the rows that it dropped."""

    steps: int = counted("work", "Passes that were published.")
    rows: int = counted("work", "Rows that were published.")
    dropped_rows: int = counted(
        "loss",
        "Rows that were not published, because their pass was larger than the ring or malformed.",
        "See the engine's log for the first one; give the ring more rows (ACTSCOPE_RING_ROWS, --ring-rows).",
    )


class Sink(Protocol):
    """Consumer of the frames of each step.

    `write` is called on the model's thread, so it must not wait for a reader.
    """

    def write(self, step: Step, frames: list[Frame]) -> None:
        """Take the frames of one step, each [step.n_rows, d]."""

    def stats(self) -> SinkStats:
        """Return exact counts of steps and rows."""

    def close(self) -> None:
        """Release all resources."""


class RowSink(Protocol):
    """Takes the rows of each step site by site, while the pass runs. `actscope.recording.writing.recorder.Recorder` is one.

    `actscope.capture(recorder=...)` accepts any object with all of these members. A class that inherits from this one has to
    define only `begin`, `put`, `end` and `close`: the other members have defaults, which record nothing.
    """

    texts: Callable[[Sequence[int]], list[str]] | None = None
    """Callback from token ids to their texts; None without a tokenizer. Set before the first step."""

    @abstractmethod
    def begin(self, step: Step) -> None:
        """Begin a step. Open steps have distinct numbers."""

    @abstractmethod
    def put(self, step: Step, site: str, rows: Tensor) -> object:
        """Take the rows [step.n_rows, d] of one site, on the CPU. The caller does not change them afterwards."""

    @abstractmethod
    def end(self, step: Step, complete: bool = True) -> None:
        """End a step. Rows of an incomplete step must not be delivered."""

    @abstractmethod
    def close(self) -> None:
        """Write what is pending and release all resources."""

    @property
    def known_requests(self) -> Collection[str]:
        """Ids of requests that an earlier session has recorded. No new request gets one of them."""
        return ()

    @property
    def failure(self) -> Exception | None:
        """The error that stopped the sink and that it has logged, or None."""
        return None

    def stats(self) -> SinkStats | None:
        """Return exact counts, or None if the sink keeps none."""
        return None

    def record_token(self, request: str, position: int, token_id: int, text: str = "") -> None:
        """Record a token that no step contains."""
        return

    def mark(self, request: str, why: str = "") -> None:
        """Mark a request."""
        return

    def flush(self) -> int:
        """Write all rows put so far to the file. Return the number of the first row that is not written."""
        return 0

    def checkpoint(self) -> int:
        """Make all rows put so far durable. Return the number of the first row that is not durable."""
        return 0


@dataclass(frozen=True, slots=True)
class TeeSink:
    """A sink that passes every step to several sinks, in order. The `write` of each of them must not raise.

    The sinks share the rows, so none may modify them. `stats` returns the first sink's.
    """

    sinks: tuple[Sink, ...]

    def write(self, step: Step, frames: list[Frame]) -> None:
        """Pass a step to every sink."""
        for sink in self.sinks:
            sink.write(step, frames)

    def stats(self) -> SinkStats:
        """Return the counts of the first sink."""
        return self.sinks[0].stats()

    def close(self) -> None:
        """Close every sink, in order."""
        for sink in self.sinks:
            sink.close()


@dataclass
class ListSink:
    """A sink that keeps a copy of every step in memory, for tests and short offline captures."""

    steps: list[tuple[Step, list[Frame]]] = field(default_factory=list)

    def write(self, step: Step, frames: list[Frame]) -> None:
        """Append a copy of the step."""
        self.steps.append(
            (step, [Frame(f.site, f.rows.copy() if isinstance(f.rows, np.ndarray) else f.rows.clone()) for f in frames])
        )

    def stats(self) -> SinkStats:
        """Return the number of steps and rows that are held."""
        return SinkStats(len(self.steps), sum(s.n_rows for s, _ in self.steps))

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
