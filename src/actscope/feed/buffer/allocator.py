"""Allocator of the feed's windows: decides which rows the generator may write and each consumer may read. Touches no memory.

States of a window:

    FREE ──begin──▶ FILLING ──filled──▶ READY ──consumed by every group, and held by no grant──▶ FREE
                       └────abandon──▶ FREE          (the generator died; the window is filled again, with the same rows)

Consumers claim rows as members of a *group*. Within a group each row goes to one consumer, and every group gets every row
`serves` times. A claim yields a *grant* of row ranges, which are held until it is released. A window with held rows is never
refilled. Rows that a consumer held when it died are counted as abandoned and not served again. Therefore no group gets a row
more than `serves` times, whatever crashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import count
from math import inf

from actscope.errors import FeedEnded, FeedNotReady, RequestRefused
from actscope.feed.buffer.position import Position, StreamMark

_WAITING_S = 60.0  # a group that found no rows within this time counts as waiting
_MOST_GONE = 1024


class State(Enum):
    """State of a window."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Fill:
    """Order to fill a window of the memory with the next rows.

    Attributes:
        window: Index of the window in memory.
        generation: Its new generation.
        epoch: Epoch that is read.
        number: Number of the window in that epoch, from 0.
        mark: Point in the epoch's stream where its rows begin. None: the generator locates it.
    """

    window: int
    generation: int
    epoch: int
    number: int
    mark: StreamMark | None


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `start` to `start + n - 1` of a window, in the order of its serving number `turn`. Turn 0 is the order in memory."""

    window: int
    generation: int
    epoch: int
    number: int
    turn: int
    window_rows: int
    start: int
    n: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Rows that one claim was granted.

    Attributes:
        id: Number of the grant.
        extents: Its row ranges, in the order of serving.
        position: Position of its first row.
        next: Position of the row after its last one.
        missed: Rows directly before these that the group never received, after a refresh or a long absence. Each missed row
            is reported by one grant.
    """

    id: int
    extents: tuple[RowRange, ...]
    position: Position
    next: Position
    missed: int = 0

    @property
    def n_rows(self) -> int:
        """Return the number of rows in all extents."""
        return sum(extent.n for extent in self.extents)


@dataclass(slots=True)
class _Window:
    number_in_memory: int
    generation: int = 0
    state: State = State.FREE
    ordinal: int = -1  # number of windows filled before it since the start
    epoch: int = 0
    number: int = 0
    mark: StreamMark | None = None
    n_rows: int = 0
    filled_rows: int = 0
    first: int = 0  # rows to serve before it since the start, all turns counted
    holders: int = 0


@dataclass(slots=True)
class _Group:
    ordinal: int
    offset: int = 0
    rows: int = 0
    missed: int = 0
    untold: int = 0  # missed rows that no grant has reported yet
    used: float = 0.0
    starved: float = -inf


@dataclass(slots=True)
class _Lease:
    owner: object
    group: str
    extents: tuple[RowRange, ...]
    until: float
    lasts: float


@dataclass(slots=True)
class RowCounts:
    """Exact counts of rows. A row is one position, whatever the number of sites.

    Every granted row is delivered, held, or abandoned (its consumer disconnected, fell silent, or gave it back unused).
    """

    filled_rows: int = 0
    filled_windows: int = 0
    granted_rows: int = 0
    delivered_rows: int = 0
    abandoned_rows: int = 0
    refreshed_rows: int = 0
    refills: int = 0
    expired_leases: int = 0
    forgotten_groups: int = 0


class WindowAllocator:
    """State of all windows, groups and grants. Not thread-safe. Times are seconds of a monotonic clock."""

    def __init__(
        self,
        *,
        windows: int,
        window_rows: int,
        serves: int = 1,
        start: Position | None = None,
        epochs: int = 0,
        max_groups: int = 16,
        group_seconds: float = 600.0,
    ) -> None:
        self.window_rows, self.serves, self.epochs = window_rows, serves, epochs
        self.counts = RowCounts()
        self.ended = False
        self._start = start or Position(0)
        self._windows = [_Window(i) for i in range(windows)]
        self._groups: dict[str, _Group] = {}
        self._gone: dict[str, int] = {}
        self._leases: dict[int, _Lease] = {}
        self._ids = count(1)
        self._max_groups, self._group_seconds = max_groups, group_seconds
        self._next_ordinal = 0  # of the window that is being filled, or is filled next
        self._floor = 0  # ordinal; windows before it were dropped by a refresh
        self._filled_until = 0  # rows to serve of all windows filled so far, all turns counted
        served_by_window = window_rows * serves
        number, self._first_offset = divmod(self._start.cursor, served_by_window)
        mark = self._start.mark or (None if number else StreamMark())
        self._next: tuple[int, int, StreamMark | None] = (self._start.epoch, number, mark)

    # --- the generator's side ---

    def begin(self) -> Fill | None:
        """Return an order to fill the next window. None if no window is free, one is being filled, or the feed has ended."""
        window = next((w for w in self._windows if w.state is State.FREE), None)
        if window is None or self.ended or any(w.state is State.FILLING for w in self._windows):
            return None
        window.state, window.generation = State.FILLING, window.generation + 1
        window.epoch, window.number, window.mark = self._next
        window.n_rows = window.filled_rows = 0
        return Fill(window.number_in_memory, window.generation, *self._next)

    @property
    def has_room(self) -> bool:
        """Whether a window is free."""
        return any(w.state is State.FREE for w in self._windows)

    def progress(self, window: int, rows: int) -> None:
        """Record the number of rows written to the window being filled."""
        self._windows[window].filled_rows = rows

    def filled(self, window: int, n_rows: int, begun: StreamMark, after: StreamMark, *, epoch_over: bool) -> None:
        """Mark a window as ready, or as free if it has no rows.

        Args:
            window: Index of the window in memory.
            n_rows: Its number of rows.
            begun: Point in the epoch's stream where its rows begin.
            after: Point where the next window begins, unless `epoch_over`.
            epoch_over: Whether the next window begins with the next epoch.
        """
        filled = self._windows[window]
        assert filled.state is State.FILLING
        assert 0 <= n_rows <= self.window_rows
        self._next = (filled.epoch + 1, 0, StreamMark()) if epoch_over else (filled.epoch, filled.number + 1, after)
        self.ended = bool(epoch_over and self.epochs and filled.epoch + 1 >= self.epochs)
        if n_rows == 0:
            filled.state = State.FREE
            return
        filled.state, filled.n_rows, filled.filled_rows, filled.mark = State.READY, n_rows, n_rows, begun
        filled.ordinal = self._next_ordinal
        filled.first, self._filled_until = self._filled_until, self._filled_until + n_rows * self.serves
        self._next_ordinal += 1
        self.counts.filled_rows += n_rows
        self.counts.filled_windows += 1
        self._retire()

    def abandon(self) -> None:
        """Free the window being filled after the generator died. It is filled again from the same mark."""
        for window in self._windows:
            if window.state is State.FILLING:
                window.state, window.filled_rows = State.FREE, 0
                self.counts.refills += 1

    # --- the consumers' side ---

    def claim(self, group: str, n: int, owner: object, now: float, lease_seconds: float = inf) -> Grant:
        """Grant the next `n` rows of a group. They are held until released, or until `owner` is silent for `lease_seconds`.

        A grant is shorter at the end of the last epoch. It is also shorter when the other rows could only come after these are
        consumed: all windows are ready, and the group has finished none of them.

        Args:
            group: Name of the group; a new one is created.
            n: Number of rows.
            owner: Consumer that will hold them.
            now: The time.
            lease_seconds: Duration of the lease.

        Returns:
            The grant. No rows are granted when an error is raised.

        Raises:
            FeedNotReady: Fewer than `n` rows are ready.
            FeedEnded: All epochs have been served to this group.
            RequestRefused: The group is new, and there are `max_groups` already.
        """
        state = self._group(group, now)
        state.used = now
        self._step_over(state)
        there = self._available(state)
        if there < n and not (there and (self.ended or self._alone_with(state))):
            if self.ended:
                raise FeedEnded(f"all {self.epochs} epochs have been served to group {group!r}")
            state.starved = now
            raise FeedNotReady(f"{there} rows are ready, {n} were requested{self._held_up(state, now)}", there)
        position = self._position(state)
        extents = tuple(self._take(state, min(n, there)))
        granted = sum(extent.n for extent in extents)
        state.rows += granted
        self.counts.granted_rows += granted
        missed, state.untold = state.untold, 0
        grant = Grant(next(self._ids), extents, position, self._position(state), missed)
        self._leases[grant.id] = _Lease(owner, group, extents, now + lease_seconds, lease_seconds)
        return grant

    def release(self, grant: int, owner: object, *, delivered: bool = True) -> bool:
        """Release a grant, counted as delivered or abandoned. Return False unless `owner` holds it."""
        lease = self._leases.get(grant)
        if lease is None or lease.owner is not owner:
            return False
        self._end(grant, delivered=delivered)
        return True

    def release_owner(self, owner: object) -> int:
        """Release all grants of a consumer as abandoned. Return the number of rows."""
        held = [grant for grant, lease in self._leases.items() if lease.owner is owner]
        return sum(self._end(grant, delivered=False) for grant in held)

    def heard(self, owner: object, now: float) -> None:
        """Renew all leases of a consumer (its heartbeat)."""
        for lease in self._leases.values():
            if lease.owner is owner:
                lease.until = now + lease.lasts

    def expire(self, now: float) -> None:
        """Expire leases of silent consumers. Forget the slowest group if it is idle and another group waits for its windows."""
        for grant in [grant for grant, lease in self._leases.items() if lease.until < now]:
            self.counts.expired_leases += 1
            self._end(grant, delivered=False)
        self._retire()
        name = self._slowest() if all(w.state is State.READY for w in self._windows) else None
        if name is None or now - self._groups[name].used <= self._group_seconds or self._holds(name):
            return
        behind = self._groups[name]
        since = max(behind.used, now - _WAITING_S)
        if any(group.starved > since for group in self._groups.values() if group is not behind):
            if len(self._gone) < _MOST_GONE:
                self._gone[name] = self._place(behind)
            del self._groups[name]
            self.counts.forgotten_groups += 1
            self._retire()

    def refresh(self) -> int:
        """Drop all ready rows, so that the next rows are new.

        Returns:
            The number of rows that the group with most unread rows loses; without groups, that of all ready rows.
        """
        dropped = 0
        ready = [w for w in self._windows if w.state is State.READY and w.ordinal >= self._floor]
        for group in self._groups.values():
            missed = self._available(group)
            group.missed, group.untold = group.missed + missed, group.untold + missed
            if group.ordinal < self._next_ordinal:
                group.ordinal, group.offset = self._next_ordinal, 0
            dropped = max(dropped, missed)
        if not self._groups:
            dropped = sum(w.n_rows * self.serves for w in ready)
        self._floor = self._next_ordinal
        self.counts.refreshed_rows += dropped
        self._retire()
        return dropped

    # --- state and statistics ---

    def available(self, group: str) -> int:
        """Return the number of rows that a group could claim now."""
        known = self._groups.get(group)
        return self._available(known if known is not None else self._newcomer(0.0))

    def lowest_position(self) -> Position:
        """Return the position of the slowest group; every group has consumed or missed the rows before it."""
        groups = self._groups.values()
        if not groups:
            return self._position(self._newcomer(0.0))
        return self._position(min(groups, key=lambda g: (g.ordinal, g.offset)))

    def windows(self) -> list[dict[str, object]]:
        """Return statistics of each window (for `GET /stats`)."""
        return [
            {"state": w.state.value, "generation": w.generation, "epoch": w.epoch, "number": w.number,
             "rows": w.filled_rows, "held_by": w.holders}
            for w in self._windows
        ]  # fmt: skip

    def groups(self) -> dict[str, dict[str, object]]:
        """Return statistics of each group (for `GET /stats`)."""
        return {
            name: {
                "rows": group.rows,
                "missed_rows": group.missed,
                "ready_rows": self._available(group),
                "position": str(self._position(group)),
            }
            for name, group in self._groups.items()
        }

    @property
    def held_rows(self) -> int:
        """Number of rows granted and not yet released."""
        return sum(extent.n for lease in self._leases.values() for extent in lease.extents)

    # --- parts ---

    def _newcomer(self, now: float) -> _Group:
        """Return a new group at the oldest of the contiguous ready windows; in the feed's first window, at the feed's start."""
        ready = {w.ordinal for w in self._windows if w.state is State.READY and w.ordinal >= self._floor}
        ordinal = self._next_ordinal
        while ordinal - 1 in ready:
            ordinal -= 1
        return _Group(ordinal, self._first_offset if ordinal == 0 else 0, used=now)

    def _group(self, name: str, now: float) -> _Group:
        known = self._groups.get(name)
        if known is not None:
            return known
        if len(self._groups) >= self._max_groups:
            raise RequestRefused(
                f"group {name!r}: expected at most {self._max_groups} groups (setting: max_groups), found already: "
                f"{', '.join(sorted(self._groups))[:200]}",
                param="group",
                code="too_many_groups",
            )
        group = self._groups[name] = self._newcomer(now)
        if name in self._gone:
            group.missed = group.untold = max(0, self._place(group) - self._gone.pop(name))
        return group

    def _place(self, group: _Group) -> int:
        """Return the number of rows to serve before a group's next one, since the start."""
        window = self._ready(group.ordinal)
        return self._filled_until if window is None else window.first + group.offset

    def _ready(self, ordinal: int) -> _Window | None:
        return next((w for w in self._windows if w.state is State.READY and w.ordinal == ordinal), None)

    def _available(self, group: _Group) -> int:
        windows = [w for w in self._windows if w.state is State.READY and w.ordinal >= group.ordinal]
        return sum(w.n_rows for w in windows) * self.serves - (group.offset if windows else 0)

    def _slowest(self) -> str | None:
        """Return the name of the group that has consumed least; None without groups."""
        return min(self._groups, key=lambda name: self._place(self._groups[name]), default=None)

    def _held_up(self, group: _Group, now: float) -> str:
        """Return the end of an error message: the other group that keeps all windows from being refilled, if there is one."""
        if any(w.state is not State.READY for w in self._windows):
            return ""
        slowest = self._slowest()
        behind = self._groups[slowest] if slowest is not None else group
        if behind is group:
            return ""
        return (
            f"; all windows wait for group {slowest!r}, idle for {now - behind.used:.0f} s: every group gets all rows"
        )

    def _alone_with(self, group: _Group) -> bool:
        """Return whether no window can become free before this group takes rows: all are ready, and it has finished none."""
        return all(w.state is State.READY and w.ordinal >= group.ordinal for w in self._windows)

    def _take(self, group: _Group, n: int) -> list[RowRange]:
        extents = []
        while n:
            window = self._ready(group.ordinal)
            assert window is not None, "the ready windows from a group's own one on are contiguous"
            turn, start = divmod(group.offset, window.n_rows)
            if turn >= self.serves:
                group.ordinal, group.offset = group.ordinal + 1, 0
                continue
            taken = min(n, window.n_rows - start)
            extents.append(
                RowRange(
                    window.number_in_memory, window.generation, window.epoch, window.number, turn, window.n_rows, start, taken
                )
            )  # fmt: skip
            window.holders += 1
            group.offset += taken
            n -= taken
        self._step_over(group)
        return extents

    def _step_over(self, group: _Group) -> None:
        """Advance a group past its window if it has consumed all of it."""
        window = self._ready(group.ordinal)
        if window is not None and group.offset >= window.n_rows * self.serves:
            group.ordinal, group.offset = group.ordinal + 1, 0
            self._retire()

    def _position(self, group: _Group) -> Position:
        window = self._ready(group.ordinal)
        if window is not None:
            served_before = window.number * self.window_rows * self.serves
            return Position(self._start.seed, window.epoch, served_before + group.offset, window.mark)
        epoch, number, mark = self._next
        offset = group.offset if group.ordinal == 0 else 0
        return Position(self._start.seed, epoch, number * self.window_rows * self.serves + offset, mark)

    def _end(self, grant: int, *, delivered: bool) -> int:
        lease = self._leases.pop(grant)
        rows = sum(extent.n for extent in lease.extents)
        for extent in lease.extents:
            self._windows[extent.window].holders -= 1
        if delivered:
            self.counts.delivered_rows += rows
        else:
            self.counts.abandoned_rows += rows
        self._retire()
        return rows

    def _holds(self, group: str) -> bool:
        return any(lease.group == group for lease in self._leases.values())

    def _retire(self) -> None:
        """Free the windows that every group has consumed and no grant holds."""
        wanted_from = min((g.ordinal for g in self._groups.values()), default=self._floor)
        for window in self._windows:
            if window.state is State.READY and window.holders == 0 and window.ordinal < wanted_from:
                window.state = State.FREE
