"""Row numbers, open steps, and the finished steps and drops that are not written yet."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from actscope.frames import Step
from actscope.recording.format.records import Drop
from actscope.recording.writing.resume import Resume
from actscope.recording.writing.site_queues import QueuedRows


@dataclass(slots=True)
class StepCounts:
    """Steps and rows since this writer began. `dropped_rows` counts a row once for each site that lost it."""

    steps: int = 0
    incomplete_steps: int = 0
    rows: int = 0
    dropped_rows: int = 0
    dropped_by_site: dict[str, int] = field(default_factory=dict)


class StepBook:
    """Numbers the rows of steps and keeps what is to be written about them. Thread-safe; its lock is held only for moments.

    A step is open from `begin` to `end`. Rows at or after the first row of an open step cannot be acknowledged.
    """

    def __init__(self, sites: Sequence[str], begun: Resume) -> None:
        self._lock = threading.Lock()
        self._counts = StepCounts(dropped_by_site=dict.fromkeys(sites, 0))
        self._next_row, self._step_base = begun.next_row, begun.last_step
        self._open: dict[int, int] = {}  # first row of each open step, by step number
        self._finished: list[tuple[Step, int]] = []
        self._drops: list[Drop] = []

    # --- from the model's thread --------------------------------------------------------------------------------------

    def begin(self, step: Step) -> None:
        """Open a step and number its rows."""
        with self._lock:
            self._open[step.number] = self._next_row
            self._next_row += step.n_rows

    def first_row(self, step: Step) -> int:
        """Return the number of the first row of an open step."""
        return self._open[step.number]

    def number(self, step: Step) -> int:
        """Return the step's number in the recording, where the steps of earlier writers come before it."""
        return step.number + self._step_base

    def end(self, step: Step, *, complete: bool, writable: bool) -> None:
        """Close a step. Its labels are kept for writing if it is `complete` and the recording `writable`."""
        with self._lock:
            first = self._open.pop(step.number)
            self._counts.steps += 1
            if not complete:
                self._counts.incomplete_steps += 1
            elif writable:
                self._counts.rows += step.n_rows
                numbered = Step(self.number(step), step.time_ns, step.spans, step.meta, step.generation)
                self._finished.append((numbered, first))

    # --- from any thread ----------------------------------------------------------------------------------------------

    def lose(self, site: str, pieces: Sequence[QueuedRows], *, writable: bool) -> None:
        """Count lost rows. A drop record is kept for writing if the recording is `writable`."""
        with self._lock:
            for piece in pieces:
                self._counts.dropped_rows += len(piece.rows)
                self._counts.dropped_by_site[site] += len(piece.rows)
                if writable:
                    self._drops.append(Drop(site, piece.first_row, len(piece.rows)))

    def take_unwritten(self) -> tuple[list[tuple[Step, int]], list[Drop]]:
        """Remove and return the finished steps, each with its first row, and the drops."""
        with self._lock:
            steps, self._finished = self._finished, []
            drops, self._drops = self._drops, []
        return steps, drops

    @property
    def next_row(self) -> int:
        """Return the number of the next step's first row."""
        return self._next_row

    @property
    def last_step(self) -> int:
        """Return the number of steps in the recording, those of earlier writers included."""
        return self._step_base + self._counts.steps

    def first_open_row(self) -> int:
        """Return the first row that belongs to an open step, or the next row if none is open."""
        with self._lock:
            return min([self._next_row, *self._open.values()])

    def counts(self) -> StepCounts:
        """Return a copy of the counts."""
        with self._lock:
            c = self._counts
            return StepCounts(c.steps, c.incomplete_steps, c.rows, c.dropped_rows, dict(c.dropped_by_site))
