"""Rows of an engine in several parts, made whole: each part scores at its own sites, and tells it in its own ring.

part 0   ████████████····        a position goes to the log when every part has told it, or has told a later one,
part 1   █████████·······        or has said that the request is over; then as one row under the columns of all parts
part 2   ██████████████··
         ────────┤ handed over
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actscope.gateway.scores.probe_table import Columns, join_columns
from actscope.gateway.scores.request_log import RequestLog

#: Joined columns are kept for so many combinations of the parts' tables.
_KEPT = 64


@dataclass(slots=True)
class RowBlock:
    """Rows of consecutive positions, as one part told them."""

    position: int
    ids: np.ndarray
    values: np.ndarray
    columns: Columns
    cached: bool

    @property
    def end(self) -> int:
        return self.position + len(self.ids)


class PartRows:
    """What one part has told of one request and the others have not; takes rows as a RequestLog does."""

    def __init__(self, joiner: Joiner, columns: Columns) -> None:
        self._joiner = joiner
        self.columns = columns
        self.blocks: deque[RowBlock] = deque()
        self.told = 0
        """First position that this part has said nothing of; what it left out before that, it will not tell."""
        self.ended = False

    def take_rows(
        self, position: int, ids: np.ndarray, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        """Rows of positions `position ..`; those that this part has told before are skipped."""
        again = max(self.told - position, 0)
        if again < len(ids):
            self.blocks.append(RowBlock(position + again, ids[again:], values[again:], columns, cached))
            self.told, self.columns = position + len(ids), columns
            self._joiner.hand_over(now_ns)

    def take_row(
        self, position: int, token_id: int, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        self.take_rows(position, np.array([token_id]), values, columns, now_ns, cached)

    def end(self, now_ns: int) -> None:
        """This part is through with the request."""
        self.ended = True
        self._joiner.hand_over(now_ns)

    def at(self, position: int) -> RowBlock | None:
        """The block that has this position, or the next one behind it; earlier blocks are dropped."""
        while self.blocks and self.blocks[0].end <= position:
            self.blocks.popleft()
        return self.blocks[0] if self.blocks else None


@dataclass(slots=True)
class PartMerger:
    """Joined columns, by those of the parts; shared by all requests, so that equal columns are the same object."""

    _known: dict[tuple[Columns, ...], tuple[Columns, np.ndarray]] = field(default_factory=dict)

    def of(self, parts: tuple[Columns, ...]) -> tuple[Columns, np.ndarray]:
        found = self._known.get(parts)
        if found is None:
            found = self._known[parts] = join_columns(parts)
            while len(self._known) > _KEPT:
                self._known.pop(next(iter(self._known)))
        return found


class Joiner:
    """The parts' rows of one request, and how far they have gone to its log.

    `on_mismatch(log, n)` is told of rows whose token another part has otherwise: that part's cells are left out.
    """

    def __init__(
        self,
        log: RequestLog,
        latest: Sequence[Columns],
        seams: PartMerger,
        on_mismatch: Callable[[RequestLog, int], None],
    ) -> None:
        self.log = log
        self.parts = [PartRows(self, columns) for columns in latest]
        self._seams = seams
        self._on_mismatch = on_mismatch
        self._next = 0

    @property
    def ended(self) -> bool:
        """Whether every part has said that the request is over."""
        return all(part.ended for part in self.parts)

    def hand_over(self, now_ns: int) -> None:
        """Give the log all positions that every part has told."""
        self._up_to(min(math.inf if part.ended else part.told for part in self.parts), now_ns)

    def flush(self, now_ns: int) -> None:
        """Give the log everything, whatever is missing of it: nothing more will come in time."""
        self._up_to(math.inf, now_ns)

    def _up_to(self, limit: float, now_ns: int) -> None:
        stop = min(limit, max(part.told for part in self.parts))
        while self._next < stop:
            self._next = self._one_run(int(stop), now_ns)

    def _one_run(self, stop: int, now_ns: int) -> int:
        """Hand over the longest run of positions over which the same parts have rows; where it ends."""
        start, found = self._next, [part.at(self._next) for part in self.parts]
        for block in found:
            if block is not None:
                stop = min(stop, block.end if block.position <= start else block.position)
        here = [block if block is not None and block.position <= start else None for block in found]
        first = next(filter(None, here), None)
        if first is not None:
            self._join(first, here, start, stop, now_ns)
        return stop

    def _join(self, first: RowBlock, here: Sequence[RowBlock | None], start: int, stop: int, now_ns: int) -> None:
        ids = first.ids[start - first.position : stop - first.position]
        pieces = [self._piece(part, block, ids, start) for part, block in zip(self.parts, here, strict=True)]
        used = tuple(
            part.columns if block is None else block.columns for part, block in zip(self.parts, here, strict=True)
        )
        columns, at = self._seams.of(used)
        values = np.concatenate(pieces, axis=1)[:, at]
        cached = any(block is not None and block.cached for block in here)
        self.log.take_rows(start, ids, values, columns, now_ns, cached)

    def _piece(self, part: PartRows, block: RowBlock | None, ids: np.ndarray, start: int) -> np.ndarray:
        """One part's columns over `len(ids)` positions from `start`; NaN where it has no row, or another token's."""
        if block is None:
            return np.full((len(ids), part.columns.width), np.nan, np.float32)
        of = slice(start - block.position, start - block.position + len(ids))
        values, wrong = block.values[of], block.ids[of] != ids
        if wrong.any():
            values = np.where(wrong[:, None], np.float32(np.nan), values)
            self._on_mismatch(self.log, int(np.count_nonzero(wrong)))
        return values
