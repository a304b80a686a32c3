"""Merges the rows of an engine in several parts. Each part scores rows at its own sites and publishes them in its own ring.

part 0   ████████████····        A position goes to the log when every part has published it or a later one, or has ended
part 1   █████████·······        the request. It goes there as one row under the columns of all parts.
part 2   ██████████████··
         ────────┤ in the log
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.gateway.scores.probe_table import Columns, Tables, join_columns
from actscope.gateway.scores.request_log import RequestLog

#: Maximum number of combinations of the parts' columns whose join is cached.
_KEPT = 64


@dataclass(slots=True)
class RowBlock:
    """Rows of consecutive positions from one part."""

    position: int
    ids: np.ndarray
    values: np.ndarray
    columns: Columns
    cached: bool

    @property
    def end(self) -> int:
        """Return the position after the last row."""
        return self.position + len(self.ids)


class PartRows:
    """Rows of one request from one part that are not merged yet. Takes rows as a `RequestLog` does.

    Attributes:
        columns: Columns of the latest row; before the first row, those of the part's latest table.
        next_position: Next expected position. Earlier gaps are final.
        ended: Whether the part has ended the request.
    """

    def __init__(self, merged: MergedRequest, columns: Columns) -> None:
        self._merged = merged
        self._blocks: deque[RowBlock] = deque()
        self.columns = columns
        self.next_position = 0
        self.ended = False

    @property
    def limit(self) -> float:
        """Return the position up to which this part adds no further rows."""
        return math.inf if self.ended else self.next_position

    def take_rows(
        self, position: int, ids: np.ndarray, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        """Take rows of consecutive positions. Rows before `next_position` are skipped. See `RequestLog.take_rows`."""
        again = max(self.next_position - position, 0)
        if again < len(ids):
            self._blocks.append(RowBlock(position + again, ids[again:], values[again:], columns, cached))
            self.next_position, self.columns = position + len(ids), columns
            self._merged.advance(now_ns)

    def take_row(
        self, position: int, token_id: int, values: np.ndarray, columns: Columns, now_ns: int, cached: bool = False
    ) -> None:
        """Take one row. See `RequestLog.take_row`."""
        self.take_rows(position, np.array([token_id]), values, columns, now_ns, cached)

    def end_rows(self, now_ns: int, *, aborted: bool = False) -> None:
        """Record that the part has ended the request. When all parts have, the rows of the log end."""
        self.ended = True
        self._merged.end_part(now_ns, aborted=aborted)

    def block_at(self, position: int) -> RowBlock | None:
        """Return the block that has this position, or the next one after it. Drop earlier blocks."""
        while self._blocks and self._blocks[0].end <= position:
            self._blocks.popleft()
        return self._blocks[0] if self._blocks else None


class JoinedColumns:
    """Cache of joined columns by those of the parts. All requests share it, so that equal columns are the same object."""

    def __init__(self) -> None:
        self._known: dict[tuple[Columns, ...], tuple[Columns, np.ndarray]] = {}

    def of(self, parts: tuple[Columns, ...]) -> tuple[Columns, np.ndarray]:
        """Return the joined columns and their indices in the concatenated columns of the parts. See `join_columns`."""
        found = self._known.get(parts)
        if found is None:
            found = self._known[parts] = join_columns(parts)
            while len(self._known) > _KEPT:
                self._known.pop(next(iter(self._known)))
        return found


class MergedRequest:
    """The parts' rows of one request, and how far they have gone to its log.

    Where parts differ in the token of a position, the first part that has the row decides. The others have no scores there; those
    rows are counted as mismatches.

    Attributes:
        log: The log of the request.
        parts: Rows of each part that are not merged yet.
        ended: Whether every part has ended the request.
    """

    def __init__(self, log: RequestLog, latest: Sequence[Columns], joined: JoinedColumns) -> None:
        self.log = log
        self.parts = [PartRows(self, columns) for columns in latest]
        self.ended = False
        self._joined = joined
        self._next = 0  # position of the next row for the log

    def advance(self, now_ns: int) -> None:
        """Give the log the positions that every part has published."""
        self._up_to(min(part.limit for part in self.parts), now_ns)

    def end_part(self, now_ns: int, *, aborted: bool) -> None:
        """Give the log the positions that no part holds back any more. End its rows if all parts have ended the request."""
        self.advance(now_ns)
        self.ended = all(part.ended for part in self.parts)
        if self.ended:
            self.log.end_rows(now_ns, aborted=aborted)

    def flush(self, now_ns: int) -> None:
        """Give the log all rows, without waiting for the parts that are behind."""
        self._up_to(math.inf, now_ns)

    def _up_to(self, limit: float, now_ns: int) -> None:
        stop = min(limit, max(part.next_position for part in self.parts))
        while self._next < stop:
            self._next = self._give_run(int(stop), now_ns)

    def _give_run(self, stop: int, now_ns: int) -> int:
        """Give the log the longest run of positions over which the same parts have rows. Return the position after it."""
        start, found = self._next, [part.block_at(self._next) for part in self.parts]
        for block in found:
            if block is not None:
                stop = min(stop, block.end if block.position <= start else block.position)
        here = [block if block is not None and block.position <= start else None for block in found]
        first = next(filter(None, here), None)
        if first is not None:
            self._give(first, here, start, stop, now_ns)
        return stop

    def _give(self, first: RowBlock, here: Sequence[RowBlock | None], start: int, stop: int, now_ns: int) -> None:
        ids = first.ids[start - first.position : stop - first.position]
        pieces = [self._piece(part, block, ids, start) for part, block in zip(self.parts, here, strict=True)]
        used = tuple(
            part.columns if block is None else block.columns for part, block in zip(self.parts, here, strict=True)
        )
        columns, cells = self._joined.of(used)
        values = np.concatenate(pieces, axis=1)[:, cells]
        cached = any(block is not None and block.cached for block in here)
        self.log.take_rows(start, ids, values, columns, now_ns, cached)

    def _piece(self, part: PartRows, block: RowBlock | None, ids: np.ndarray, start: int) -> np.ndarray:
        """Return one part's cells of `len(ids)` positions from `start`: NaN where it has no row, or one of another token."""
        if block is None:
            return np.full((len(ids), part.columns.width), np.nan, np.float32)
        of = slice(start - block.position, start - block.position + len(ids))
        values, wrong = block.values[of], block.ids[of] != ids
        if wrong.any():
            values = np.where(wrong[:, None], np.float32(np.nan), values)
            self.log.count_mismatches(int(np.count_nonzero(wrong)))
        return values


class PartMerger:
    """Requests of one engine in several parts. `tables` are the probe tables of its parts."""

    def __init__(self, tables: Sequence[Tables]) -> None:
        self._tables = tables
        self._joined = JoinedColumns()
        self._requests: dict[str, MergedRequest] = {}

    def part_of(self, log: RequestLog, part: int) -> PartRows:
        """Return what takes the rows of one part of a request."""
        merged = self._requests.get(log.request)
        if merged is None or merged.ended or merged.log is not log:
            merged = self._begin(log)
        return merged.parts[part]

    def _begin(self, log: RequestLog) -> MergedRequest:
        self._requests = {name: m for name, m in self._requests.items() if m.log.running and not m.ended}
        latest = [tables.latest.columns for tables in self._tables]
        begun = self._requests[log.request] = MergedRequest(log, latest, self._joined)
        return begun

    def flush(self, log: RequestLog, now_ns: int) -> None:
        """Give a log that is about to end the rows that not all parts have published."""
        merged = self._requests.pop(log.request, None)
        if merged is not None:
            merged.flush(now_ns)
