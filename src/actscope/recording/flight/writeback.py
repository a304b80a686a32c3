"""Write-back of marked rows from the flight recorder to the recording."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.errors import ActscopeError, RecordingPoisoned
from actscope.frames import Frame, Span, SpanFlag, Step
from actscope.recording.flight.request_rows import HeldSpan, KeptStep
from actscope.recording.flight.spool import Run, Spool
from actscope.recording.writing.recorder import Recorder

log = logging.getLogger("actscope.recording")

#: Maximum bytes written by one `pump`, so that new steps do not wait long.
_AT_ONCE = 32 << 20

#: A run of rows of one held span.
Piece = tuple[HeldSpan, Run]


@dataclass(slots=True, eq=False)
class _Move:
    kept: KeptStep
    pieces: list[Piece]
    done: bool = False

    @property
    def n_rows(self) -> int:
        return sum(stop - start for _, (start, stop) in self.pieces)


class Writeback:
    """FIFO of rows for a recorder with policy `drop`, which must have no other writer. Not thread-safe.

    `pump` respects the recorder's back pressure. Rows of a step that is being evicted are written at once; the recorder drops and
    counts those for which it has no room.
    """

    def __init__(self, recorder: Recorder, spool: Spool) -> None:
        self.recorder = recorder
        self.rows = 0  # written to the recorder
        self.lost_rows = 0  # not written, because the recorder or the spool failed
        self._spool = spool
        self._moves: deque[_Move] = deque()
        self._of_step: dict[int, list[_Move]] = {}  # by the id of the kept step
        self._reported = False
        self._poisoned: RecordingPoisoned | None = None

    @property
    def failure(self) -> Exception | None:
        """Return the error that stopped the recording, or None."""
        return self.recorder.failure or self._poisoned

    def __bool__(self) -> bool:
        return bool(self._moves)

    def add(self, kept: KeptStep, pieces: list[Piece]) -> None:
        """Enqueue these rows of one step, in portions that fit into the recorder's queue."""
        for held, (start, stop) in pieces:
            held.trail.rows_given += stop - start
        for part in _portions(pieces, self._rows_at_once(kept)):
            move = _Move(kept, part)
            self._moves.append(move)
            self._of_step.setdefault(id(kept), []).append(move)

    def _rows_at_once(self, kept: KeptStep) -> int:
        """Return the maximum rows of a move: all of its sites together take a quarter of the recorder's queue."""
        row_bytes = kept.size // max(1, kept.step.n_rows)
        return max(1, self.recorder.options.queue_bytes // 4 // max(1, row_bytes))

    def hurry(self, kept: KeptStep) -> None:
        """Write the step's pending rows now, because the step is being evicted."""
        for move in list(self._of_step.get(id(kept), ())):
            self._hand_over(move)

    def pump(self) -> None:
        """Write the pending rows for which the recorder has room, at most `_AT_ONCE` bytes.

        A portion larger than the room is written when the recorder is empty.
        """
        room = self._room()
        for _ in range(len(self._moves)):
            move = self._moves[0]
            size = 0 if move.done else self._size(move)
            if size > room and not self._idle():
                return
            self._moves.popleft()
            if not move.done:
                self._hand_over(move)
                room -= size

    def drain(self) -> None:
        """Write all pending rows. Flushes the recorder, which blocks, when it has no room."""
        while self._moves:
            move = self._moves.popleft()
            if move.done:
                continue
            if self.failure is None and self._size(move) > self._room():
                self._flush()
            self._hand_over(move)

    def _flush(self) -> None:
        try:
            self.recorder.flush()
        except ActscopeError as error:
            self._report(error)

    def _room(self) -> int:
        """Return the bytes that may be written now. After a failure `_AT_ONCE`: those rows are counted as lost."""
        if self.failure is not None:
            return _AT_ONCE
        return min(_AT_ONCE, self.recorder.options.queue_bytes - self.recorder.stats().held_bytes)

    def _idle(self) -> bool:
        return self.failure is not None or self.recorder.stats().held_bytes == 0

    def _size(self, move: _Move) -> int:
        share = move.n_rows / max(1, move.kept.step.n_rows)
        return int(move.kept.size * share)

    def _hand_over(self, move: _Move) -> None:
        move.done = True
        moves = self._of_step[id(move.kept)]
        moves.remove(move)
        if not moves:
            del self._of_step[id(move.kept)]
        if self.failure is not None:
            self.lost_rows += move.n_rows
            return
        try:
            self.recorder.write(part_of(move.kept.step, move.pieces), self._frames(move))
            self.rows += move.n_rows
        except (ActscopeError, OSError) as error:
            self.lost_rows += move.n_rows
            self._report(error)

    def mark(self, request: str, why: str) -> None:
        """Write a mark to the recording, unless the recording has failed."""
        if self.failure is not None:
            return
        try:
            self.recorder.mark(request, why)
        except (ActscopeError, OSError) as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        if isinstance(error, RecordingPoisoned):  # already logged by the recorder; its own threads may see it later
            self._poisoned = error
            return
        if not self._reported:
            self._reported = True
            log.error("what was to be kept is lost (further losses are only counted): %s", error)

    def _frames(self, move: _Move) -> list[Frame]:
        runs = joined([(held.span.offset + start, held.span.offset + stop) for held, (start, stop) in move.pieces])
        if not move.n_rows:
            return []
        frames = []
        for which, (site, dtype) in enumerate(move.kept.sites):
            rows = self._spool.rows(move.kept.ticket, which, runs)
            frames.append(Frame(site, rows, dtype))
        return frames


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


def _portions(pieces: list[Piece], max_rows: int) -> list[list[Piece]]:
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
