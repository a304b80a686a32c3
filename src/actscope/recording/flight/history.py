"""History of recent steps, bounded in bytes and in time. The oldest step is evicted first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actscope.errors import SettingsError
from actscope.frames import Frame, Span, SpanFlag, Step
from actscope.recording.flight.request_rows import HeldStep, Piece, RequestRows, Tombstone
from actscope.recording.flight.spool import DiskSpool, MemorySpool, Spool

#: Number of evicted requests that stay distinguishable from unknown ones.
_TOMBSTONES = 16_384


@dataclass(frozen=True, slots=True)
class FlightOptions:
    """Bounds and location of the flight recorder's buffer.

    Raises:
        SettingsError: A bound is out of range.
    """

    bytes: int = 1 << 30
    """Upper bound of held rows and labels, in bytes (at least 1 MiB). On disk, one more file of at most 64 MiB."""
    seconds: float = 0.0
    """Maximum age of a step, in seconds. 0 disables the limit."""
    directory: str = ""
    """Directory for the rows; labels stay in memory. Empty: rows stay in memory too."""
    queue_bytes: int = 256 << 20
    """Upper bound of the queue to the recorder's thread, in bytes (at least 64 KiB). Further rows are dropped and counted."""
    pending: int = 4096
    """Maximum number of marks for requests that have not begun."""

    def __post_init__(self) -> None:
        if self.bytes < 1 << 20 or self.seconds < 0 or self.queue_bytes < 1 << 16 or self.pending < 0:
            raise SettingsError(
                "flight recorder: expected bytes >= 1 MiB, seconds >= 0, queue_bytes >= 64 KiB, pending >= 0; found "
                f"{self.bytes}, {self.seconds}, {self.queue_bytes}, {self.pending}"
            )

    def spool(self) -> Spool:
        """Return a new spool: on disk if `directory` is set, else in memory."""
        if not self.directory:
            return MemorySpool()
        return DiskSpool(self.directory, min(64 << 20, max(1 << 16, self.bytes // 16)))


class History:
    """Recent steps in order, and the `RequestRows` of each request in them. Not thread-safe; any thread may read the counts.

    `before_evict` is called with each step before its rows are evicted.

    Attributes:
        rows: Number of held rows.
        bytes: Bytes of held rows and labels.
        bytes_max: Maximum of `bytes` since the start.
        forgotten_rows: Number of rows that were evicted since the start.
        oldest_ns: Time of the oldest held step; None if there is none.
    """

    def __init__(self, options: FlightOptions, spool: Spool, before_evict: Callable[[HeldStep], None]) -> None:
        self.bytes = self.bytes_max = 0
        self.rows = self.forgotten_rows = 0
        self.oldest_ns: int | None = None
        self._options = options
        self._spool = spool
        self._before_evict = before_evict
        self._steps: deque[HeldStep] = deque()
        self._requests: dict[str, RequestRows] = {}
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._begun = 0

    def __len__(self) -> int:
        return len(self._steps)

    # --- requests ---------------------------------------------------------------------------------------------------------

    def requests(self) -> list[RequestRows]:
        """Return the requests that run or have held rows. May be called from any thread."""
        return list(self._requests.values())

    def find(self, request: str) -> RequestRows | None:
        """Return the rows of a request; None if it is unknown or all of its rows were evicted."""
        return self._requests.get(request)

    def tombstone(self, request: str) -> Tombstone | None:
        """Return the summary of a finished request whose rows were evicted."""
        return self._tombstones.get(request)

    def begin(self, step: Step) -> list[RequestRows]:
        """Create the requests that begin in this step, and return them."""
        return [self._create(span.request) for span in step.spans if span.n_rows and self._begins(span)]

    def _begins(self, span: Span) -> bool:
        """Return whether this span begins a request. A request id may be reused after its END span."""
        found = self._requests.get(span.request)
        return found is None or (found.end is not None and SpanFlag.FIRST in span.flags)

    def _create(self, request: str) -> RequestRows:
        self._begun += 1
        created = self._requests[request] = RequestRows(request, self._begun)
        self._tombstones.pop(request, None)
        return created

    def end(self, step: Step, span: Span) -> list[Piece]:
        """End the span's request. Return its END span if a mark keeps it. Its held rows stay until they are evicted.

        A request that is over already ends no second time.
        """
        if span.request in self._tombstones and span.request not in self._requests:
            return []
        request_rows = self._create(span.request) if self._begins(span) else self._requests[span.request]
        if not request_rows.running:
            return []
        pieces = request_rows.finish(step, span)
        if request_rows.over:
            self._bury(request_rows)
        return pieces

    def lose_request(self, request: str) -> Tombstone:
        """Remember a request that ended without any row."""
        self._tombstones[request] = found = Tombstone(request, 0, (), (), marked=True)
        self._tombstones.move_to_end(request)
        self._bound_tombstones()
        return found

    def _bound_tombstones(self) -> None:
        while len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _bury(self, request_rows: RequestRows) -> None:
        """Replace a request that is over by its tombstone. Keep the newest `_TOMBSTONES`."""
        if self._requests.get(request_rows.request) is not request_rows:  # the id was reused
            return
        del self._requests[request_rows.request]
        self._tombstones[request_rows.request] = request_rows.tombstone()
        self._bound_tombstones()

    # --- rows -------------------------------------------------------------------------------------------------------------

    def add(self, step: Step, frames: Sequence[Frame]) -> list[Piece]:
        """Hold a step and its rows, after evicting the oldest steps until it fits. Return the pieces that marks keep.

        Call `begin` with the step first.

        Raises:
            OSError: The rows cannot be stored. The step is not held.
        """
        held, arrays = HeldStep.of(step, frames)
        while self._steps and self.bytes + held.size > self._options.bytes:
            self._evict_oldest()
        held.store(self._spool, arrays)
        self._steps.append(held)
        self._count(held, +1)
        requests = self._requests
        for span in step.spans:
            if span.n_rows:
                request_rows = requests.get(span.request) or self._create(span.request)  # it may just have been evicted
                request_rows.hold(span, held)
        return held.give()

    def lose(self, step: Step) -> None:
        """Count the rows of a step that cannot be held as dropped, for each of its requests. Call `begin` first."""
        for span in step.spans:
            if span.n_rows:
                request_rows = self._requests.get(span.request) or self._create(span.request)
                request_rows.lose(span, step.time_ns)

    def expire(self, now_ns: int) -> None:
        """Evict the steps that exceed the byte bound or the age limit."""
        limit = now_ns - int(self._options.seconds * 1e9)
        while self._steps and (
            self.bytes > self._options.bytes or (self._options.seconds and self._steps[0].step.time_ns < limit)
        ):
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        held_step = self._steps.popleft()
        self._before_evict(held_step)
        for held in held_step.spans:
            held.owner.evict(held)
            if held.owner.over:
                self._bury(held.owner)
        self._count(held_step, -1)
        self.forgotten_rows += held_step.step.n_rows
        held_step.discard(self._spool)

    def _count(self, held_step: HeldStep, sign: int) -> None:
        self.bytes += sign * held_step.size
        self.rows += sign * held_step.step.n_rows
        self.bytes_max = max(self.bytes_max, self.bytes)
        self.oldest_ns = self._steps[0].step.time_ns if self._steps else None

    def close(self) -> None:
        """Release the spool."""
        self._spool.close()
