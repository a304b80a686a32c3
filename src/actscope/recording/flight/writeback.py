"""Write-back of marked rows from the flight recorder to the recording."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.errors import ActscopeError, RecordingPoisoned
from actscope.frames import Frame, Span, SpanFlag, Step
from actscope.recording.flight.marks import MarkResult, MarkWatch, Outcomes
from actscope.recording.flight.request_rows import HeldStep, Kept, Piece, RequestRows
from actscope.recording.flight.spool import Run, Spool
from actscope.recording.writing.recorder import Recorder

log = logging.getLogger("actscope.recording")

#: Maximum bytes written by one `pump`, so that new steps do not wait long.
_AT_ONCE = 32 << 20
#: Most requests without a mark whose notes are remembered.
_MOST_NOTED = 1 << 16
#: Most requests whose loss is logged one by one.
_MOST_TOLD = 20
_END = int(SpanFlag.END)


@dataclass(slots=True, eq=False)
class _Portion:
    """Pieces of one held step that are written together."""

    held_step: HeldStep
    pieces: list[Piece]
    written: bool = False

    @property
    def n_rows(self) -> int:
        return sum(stop - start for _, (start, stop) in self.pieces)

    @property
    def size(self) -> int:
        """Return the portion's share of the bytes of its step."""
        share = self.n_rows / max(1, self.held_step.step.n_rows)
        return int(self.held_step.size * share)

    def step(self) -> Step:
        return part_of(self.held_step.step, self.pieces)

    def frames(self, spool: Spool) -> list[Frame]:
        """Read the rows from the spool."""
        if not self.n_rows:
            return []
        runs = [(held.span.offset + start, held.span.offset + stop) for held, (start, stop) in self.pieces]
        return self.held_step.frames(spool, joined(runs))


class Writeback:
    """FIFO of marked rows for a recorder with policy `drop`, which must have no other writer. Not thread-safe.

    `pump` respects the recorder's back pressure. Rows of a step that is being evicted are written at once; the recorder drops and
    counts those for which it has no room.

    Attributes:
        rows: Number of rows written to the recorder.
        lost_rows: Number of rows not written, because the recorder or the spool failed.
        marks: Number of marks, one for each reason of a request.
        marked_requests: Number of requests with a mark.
        outcomes: What became of the marked requests that have ended.
    """

    def __init__(
        self, recorder: Recorder, spool: Spool, outcomes: Outcomes | None = None, watch: MarkWatch | None = None
    ) -> None:
        self.outcomes = outcomes or Outcomes()
        self._watch = watch
        self._ending: deque[tuple[int, RequestRows]] = deque()  # (row before which all of the request's are, request)
        self.rows = 0
        self.lost_rows = 0
        self.marks = self.marked_requests = 0
        self._recorder = recorder
        self._spool = spool
        self._queue: deque[_Portion] = deque()
        self._of_step: dict[HeldStep, list[_Portion]] = {}  # those that are not written yet
        self._notes: OrderedDict[str, list[str]] = OrderedDict()  # of requests without a mark
        self._reported = False
        self._told = 0  # requests whose loss was logged
        self._poisoned: RecordingPoisoned | None = None

    @property
    def failure(self) -> Exception | None:
        """Return the error that stopped the recording, or None."""
        return self._recorder.failure or self._poisoned

    def __bool__(self) -> bool:
        return bool(self._queue)

    def keep(self, kept: Kept) -> None:
        """Enqueue the held rows of a mark, and write the mark to the recording unless its reason is known."""
        if kept.first:
            self.marked_requests += 1
            if self._watch is not None:
                self._watch.marked(kept.request, kept.why or "")
        for pieces in kept.pieces:
            self.add(pieces)
        if kept.why is not None:
            self.marks += 1
            self._write_mark(kept.request, kept.why)
        for note in self._notes.pop(kept.request, ()):
            self._write_mark(kept.request, note)

    def note(self, request: str, note: str, *, is_marked: bool) -> None:
        """Write a note on a request to the recording, in the place of a mark's reason; once it is marked, if it is not yet."""
        if is_marked:
            self._write_mark(request, note)
            return
        self._notes.setdefault(request, []).append(note)
        if len(self._notes) > _MOST_NOTED:
            self._notes.popitem(last=False)

    def _write_mark(self, request: str, why: str) -> None:
        if self.failure is not None:
            return
        try:
            self._recorder.mark(request, why)
        except (ActscopeError, OSError) as error:
            self._report(error)

    def add(self, pieces: list[Piece]) -> None:
        """Enqueue pieces of one step, in portions that fit into the recorder's queue."""
        if not pieces:
            return
        held_step = pieces[0][0].held_step
        for part in _split(pieces, self._rows_at_once(held_step)):
            portion = _Portion(held_step, part)
            self._queue.append(portion)
            self._of_step.setdefault(held_step, []).append(portion)

    def _rows_at_once(self, held_step: HeldStep) -> int:
        """Return the maximum rows of a portion: all of its sites together take a quarter of the recorder's queue."""
        row_bytes = held_step.size // max(1, held_step.step.n_rows)
        return max(1, self._recorder.options.queue_bytes // 4 // max(1, row_bytes))

    def hurry(self, held_step: HeldStep) -> None:
        """Write the step's pending rows now, because the step is being evicted."""
        for portion in list(self._of_step.get(held_step, ())):
            self._write(portion)

    def pump(self) -> None:
        """Write the pending rows for which the recorder has room, at most `_AT_ONCE` bytes.

        A portion larger than the room is written when the recorder is empty.
        """
        if self._ending:
            self.settle_written()
        if not self._queue:
            return
        room = self._room()
        for _ in range(len(self._queue)):
            portion = self._queue[0]
            size = 0 if portion.written else portion.size
            if size > room and not self._idle():
                return
            self._queue.popleft()
            if not portion.written:
                self._write(portion)
                room -= size

    def drain(self) -> None:
        """Write all pending rows. Flushes the recorder, which blocks, when it has no room."""
        while self._queue:
            portion = self._queue.popleft()
            if portion.written:
                continue
            if self.failure is None and portion.size > self._room():
                self._flush()
            self._write(portion)
        if self._ending and self.failure is None:
            self._flush()
        self.settle_written()

    def settle_written(self) -> None:
        """Count the marked requests that have ended and whose rows are in the file by now, or never will be."""
        written = self._recorder.stats().written_rows
        while self._ending and (self._ending[0][0] <= written or self.failure is not None):
            upto, request_rows = self._ending.popleft()
            result = request_rows.result()
            if upto > written and result.rows:  # the disk failed: nobody knows which of them are there
                result = replace(result, dropped=((0, request_rows.position + 1),))
            self.settle(result)

    def settle(self, result: MarkResult, *, earlier: bool = False) -> None:
        """Count a marked request that has ended (see `Outcomes.count`). The first ones that are not whole are logged."""
        outcome = self.outcomes.count(result, earlier=earlier)
        if outcome != "whole" and self.failure is None:  # a failed recording was logged
            self._tell_loss(outcome, result)
        if self._watch is not None:
            self._watch.settled(result, self.outcomes)

    def _tell_loss(self, outcome: str, result: MarkResult) -> None:
        self._told += 1
        if self._told > _MOST_TOLD:
            return
        log.error(
            "request %s was to be kept and is %s: %d rows are recorded, %d positions are lost%s",
            result.request[:200],
            outcome,
            result.rows,
            result.missing,
            " (further such requests are only counted)" if self._told == _MOST_TOLD else "",
        )

    def _flush(self) -> None:
        try:
            self._recorder.flush()
        except ActscopeError as error:
            self._report(error)

    def _room(self) -> int:
        """Return the bytes that may be written now. After a failure `_AT_ONCE`: those rows are counted as lost."""
        if self.failure is not None:
            return _AT_ONCE
        return min(_AT_ONCE, self._recorder.options.queue_bytes - self._recorder.stats().held_bytes)

    def _idle(self) -> bool:
        return self.failure is not None or self._recorder.stats().held_bytes == 0

    def _write(self, portion: _Portion) -> None:
        portion.written = True
        self._done(portion)
        if not self._put(portion):
            for held, (start, stop) in portion.pieces:
                held.owner.unwritten(held, start, stop)
        for held, _ in portion.pieces:
            if int(held.span.flags) & _END:
                self._ending.append((self._recorder.next_row, held.owner))

    def _put(self, portion: _Portion) -> bool:
        """Hand a portion to the recorder. Return whether it took all of it; what it did not is counted, there or here."""
        if self.failure is not None:
            self.lost_rows += portion.n_rows
            return False
        try:
            taken = self._hand_over(portion.step(), portion.frames(self._spool))
            self.rows += portion.n_rows
        except (ActscopeError, OSError) as error:
            self.lost_rows += portion.n_rows
            self._report(error)
            return False
        return taken

    def _hand_over(self, step: Step, frames: list[Frame]) -> bool:
        """Write a step as `Recorder.write` does, and return whether it had room for every site's rows."""
        self._recorder.begin(step)
        try:
            taken = [self._recorder.put(step, frame.site, frame.rows, frame.dtype) for frame in frames]
        except BaseException:  # an open step would block the acknowledgment of all later rows
            self._recorder.end(step, complete=False)
            raise
        self._recorder.end(step)
        return all(taken)

    def _done(self, portion: _Portion) -> None:
        pending = self._of_step[portion.held_step]
        pending.remove(portion)
        if not pending:
            del self._of_step[portion.held_step]

    def _report(self, error: Exception) -> None:
        if isinstance(error, RecordingPoisoned):  # already logged by the recorder; its own threads may see it later
            self._poisoned = error
            return
        if not self._reported:
            self._reported = True
            log.error("marked rows are lost (further losses are only counted): %s", error)


def part_of(step: Step, pieces: Sequence[Piece]) -> Step:
    """Return a step that contains only these rows, with spans, flags and labels adjusted."""
    spans, indices, offset = [], [], 0
    for held, (start, stop) in pieces:
        span, flags = held.span, held.span.flags
        if start:
            flags &= ~SpanFlag.FIRST
        if stop < span.n_rows:
            flags &= ~(SpanFlag.END | SpanFlag.ABORTED)
        spans.append(Span(span.request, span.first_position + start, stop - start, offset, flags, span.n_prompt))
        indices.append(np.arange(span.offset + start, span.offset + stop))
        offset += stop - start
    meta = step.meta[np.concatenate(indices)].copy() if offset else step.meta[:0].copy()
    meta["span"] = np.repeat(np.arange(len(spans)), [span.n_rows for span in spans])
    return Step(step.number, step.time_ns, tuple(spans), meta, step.generation)


def _split(pieces: list[Piece], max_rows: int) -> list[list[Piece]]:
    """Split the pieces into portions of at most `max_rows` rows."""
    portions: list[list[Piece]] = []
    room = 0
    for held, (start, stop) in pieces:
        while True:
            if not room:
                portions.append([])
                room = max_rows
            end = min(stop, start + room)
            portions[-1].append((held, (start, end)))
            room -= end - start
            start = end
            if start >= stop:
                break
    return portions


def joined(runs: list[Run]) -> list[Run]:
    """Return the runs with adjacent ones merged, in the same order."""
    found: list[Run] = []
    for start, stop in runs:
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found
