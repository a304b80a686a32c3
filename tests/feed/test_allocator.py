"""The allocator's rules without memory or processes: which rows a claim gets, and when a window is filled again."""

from __future__ import annotations

from collections import defaultdict
from math import inf

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actscope.errors import FeedEnded, FeedNotReady, RequestRefused
from actscope.feed.buffer.allocator import Fill, Grant, RowRange, State, WindowAllocator
from actscope.feed.buffer.position import Position, StreamMark

ME, OTHER = object(), object()


def filled(buffer: WindowAllocator, rows: int | None = None, *, epoch_over: bool = False) -> Fill:
    """The next window, filled."""
    fill = buffer.begin()
    assert fill is not None
    n = buffer.window_rows if rows is None else rows
    begun = fill.mark or StreamMark(100 * fill.number)
    buffer.filled(fill.window, n, begun, StreamMark(begun.chunk + 1), epoch_over=epoch_over)
    return fill


def rows_of(grant: Grant) -> list[tuple[int, int, int, int]]:
    """(epoch, number, turn, place) of each row."""
    return [(e.epoch, e.number, e.turn, place) for e in grant.extents for place in range(e.start, e.start + e.n)]


def test_a_claim_runs_on_from_one_window_into_the_next() -> None:
    """A batch may begin in one window and end in the next, and the rows follow each other."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer), filled(buffer)
    first = buffer.claim("g", 7, ME, 0.0)
    second = buffer.claim("g", 7, ME, 0.0)
    assert rows_of(first) + rows_of(second) == [(0, 0, 0, i) for i in range(10)] + [(0, 1, 0, i) for i in range(4)]
    assert (str(second.position), str(second.next)) == ("0:0:7@0+0", "0:0:14@1+0")


def test_a_claim_gets_all_or_nothing() -> None:
    """Where fewer rows are ready than asked for, none is granted, and it is said how many there are."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    with pytest.raises(FeedNotReady, match="10 rows are ready, 11") as error:
        buffer.claim("g", 11, ME, 0.0)
    assert error.value.available == 10 and buffer.counts.granted_rows == 0
    assert buffer.claim("g", 10, ME, 0.0).n_rows == 10


def test_a_window_that_is_held_is_not_filled_again() -> None:
    """A window is free only when every group has been served it and no grant holds any of it."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer), filled(buffer)
    held = buffer.claim("g", 10, ME, 0.0)
    assert buffer.begin() is None
    assert buffer.release(held.id, ME)
    fill = buffer.begin()
    assert fill is not None and (fill.window, fill.generation, fill.number) == (0, 2, 2)


def test_each_group_gets_every_row_and_within_a_group_each_row_goes_to_one() -> None:
    """Groups are served apart; consumers of one group share."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    a1, a2 = buffer.claim("a", 5, ME, 0.0), buffer.claim("a", 5, OTHER, 0.0)
    b = buffer.claim("b", 10, ME, 0.0)
    assert rows_of(a1) + rows_of(a2) == rows_of(b)
    for grant, owner in ((a1, ME), (a2, OTHER)):
        buffer.release(grant.id, owner)
    assert buffer.windows()[0]["state"] == "ready"  # b holds it
    buffer.release(b.id, ME)
    assert buffer.windows()[0]["state"] == "free"


def test_a_row_is_served_as_often_as_was_said() -> None:
    """With serves=3 every row of a window comes three times, once in each turn, and then the window is free."""
    buffer = WindowAllocator(windows=2, window_rows=4, serves=3)
    filled(buffer)
    grant = buffer.claim("g", 12, ME, 0.0)
    assert rows_of(grant) == [(0, 0, turn, place) for turn in range(3) for place in range(4)]
    buffer.release(grant.id, ME)
    assert buffer.windows()[0]["state"] == "free"


def test_what_a_dead_consumer_held_is_counted_and_not_served_again() -> None:
    """Rows of a consumer that crashed are counted as abandoned and never served again (at most once)."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    buffer.claim("g", 4, ME, 0.0)
    assert buffer.release_owner(ME) == 4
    rest = buffer.claim("g", 6, OTHER, 0.0)
    assert rows_of(rest) == [(0, 0, 0, i) for i in range(4, 10)]
    assert buffer.counts.abandoned_rows == 4


def test_a_silent_consumer_loses_its_lease_and_one_that_is_heard_keeps_it() -> None:
    """A lease expires `lease_seconds` after the last sign of life of its owner."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    silent, heard = buffer.claim("g", 5, ME, 0.0, 1.0), buffer.claim("g", 5, OTHER, 0.0, 1.0)
    buffer.heard(OTHER, 0.9)
    buffer.expire(1.5)
    assert not buffer.release(silent.id, ME)
    assert buffer.release(heard.id, OTHER)
    assert (buffer.counts.expired_leases, buffer.counts.abandoned_rows, buffer.counts.delivered_rows) == (1, 5, 5)


def test_only_its_owner_releases_a_grant() -> None:
    """Releasing another consumer's grant has no effect."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    grant = buffer.claim("g", 5, ME, 0.0)
    assert not buffer.release(grant.id, OTHER)
    assert buffer.held_rows == 5


def test_a_generator_that_dies_leaves_its_window_to_the_next_one() -> None:
    """The window is filled again from the same mark, under a new generation."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    before = buffer.begin()
    buffer.abandon()
    after = buffer.begin()
    assert before is not None and after is not None
    assert (after.number, after.mark) == (before.number, before.mark)
    assert after.generation == before.generation + 1


def test_the_end_of_the_last_epoch_gives_what_is_left_and_then_says_so() -> None:
    """The last batch may be shorter; then there is nothing more, which is an error of its own."""
    buffer = WindowAllocator(windows=2, window_rows=10, epochs=1)
    filled(buffer, 7, epoch_over=True)
    assert buffer.claim("g", 5, ME, 0.0).n_rows == 5
    assert buffer.claim("g", 5, ME, 0.0).n_rows == 2
    with pytest.raises(FeedEnded, match="1 epochs"):
        buffer.claim("g", 5, ME, 0.0)
    assert buffer.begin() is None


def test_a_short_window_ends_an_epoch_and_the_next_begins_at_zero() -> None:
    """Positions count within an epoch."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer, 3, epoch_over=True)
    fill = filled(buffer)
    assert (fill.epoch, fill.number, fill.mark) == (1, 0, StreamMark())
    grant = buffer.claim("g", 5, ME, 0.0)
    assert [(e.epoch, e.n) for e in grant.extents] == [(0, 3), (1, 2)]
    assert str(grant.next) == "0:1:2@0+0"


def test_an_epoch_whose_last_chunks_have_no_rows_goes_over_into_the_next() -> None:
    """A window that turned out empty is no window."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    filled(buffer, 0, epoch_over=True)
    fill = filled(buffer)
    assert (fill.epoch, fill.number) == (1, 0)
    assert buffer.claim("g", 20, ME, 0.0).n_rows == 20


def test_a_feed_that_resumes_goes_on_with_the_very_next_row() -> None:
    """From any position that a grant gave, a new buffer grants what the old one would have granted next."""
    first = WindowAllocator(windows=2, window_rows=10, serves=2)
    filled(first), filled(first)
    position = first.claim("g", 27, ME, 0.0).next
    expected = first.claim("g", 5, ME, 0.0)
    second = WindowAllocator(windows=2, window_rows=10, serves=2, start=Position.parse(str(position)))
    fill = filled(second)
    assert (fill.epoch, fill.number) == (0, 1) and fill.mark == StreamMark(1)
    found = second.claim("g", 5, ME, 0.0)
    assert rows_of(found) == rows_of(expected) and found.next.cursor == expected.next.cursor


def test_a_refresh_drops_what_is_ready_and_every_group_learns_of_it_once() -> None:
    """What was dropped is counted as missed, and said with the next grant."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer), filled(buffer)
    buffer.release(buffer.claim("g", 3, ME, 0.0).id, ME)
    assert buffer.refresh() == 17
    filled(buffer)
    grants = [buffer.claim("g", 2, ME, 0.0) for _ in range(2)]
    assert [grant.missed for grant in grants] == [17, 0]
    assert rows_of(grants[0])[0] == (0, 2, 0, 0)


def test_a_refresh_before_the_first_claim_frees_the_windows() -> None:
    """A refresh works without any consumer."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer), filled(buffer)
    assert buffer.refresh() == 20
    assert buffer.begin() is not None


def test_windows_that_are_short_do_not_stop_the_feed() -> None:
    """If no window can become free otherwise, a group gets the rows that are ready, although it asked for more."""
    buffer = WindowAllocator(windows=2, window_rows=100)
    filled(buffer, 30, epoch_over=True), filled(buffer, 30, epoch_over=True)
    for _ in range(6):
        grant = buffer.claim("g", 41, ME, 0.0)
        assert 0 < grant.n_rows <= 41
        buffer.release(grant.id, ME)
        while buffer.begin() is not None:
            buffer.abandon()
            filled(buffer, 30, epoch_over=True)


def test_a_new_group_begins_where_no_window_is_missing() -> None:
    """A window that a slow consumer holds, with later ones gone, is no place to begin: rows would not follow each other."""
    buffer = WindowAllocator(windows=3, window_rows=10)
    for _ in range(3):
        filled(buffer)
    buffer.claim("g", 10, ME, 0.0)  # held: window 0
    buffer.release(buffer.claim("g", 10, OTHER, 0.0).id, OTHER)  # window 1 is free again
    filled(buffer)
    assert [(e.number, e.n) for e in buffer.claim("new", 15, OTHER, 0.0).extents] == [(2, 10), (3, 5)]


def test_a_refresh_before_the_first_window_keeps_the_place_to_go_on() -> None:
    """There is nothing to drop yet, and so nothing changes."""
    buffer = WindowAllocator(windows=2, window_rows=100, start=Position(0, 0, 250))
    assert buffer.refresh() == 0
    filled(buffer)
    assert buffer.claim("g", 10, ME, 0.0).position.cursor == 250


def test_a_group_that_sleeps_is_forgotten_only_when_another_waits_for_it() -> None:
    """One group cannot hold all others up for ever; what it missed is told when it comes back."""
    buffer = WindowAllocator(windows=2, window_rows=10, group_seconds=5.0)
    filled(buffer), filled(buffer)
    buffer.release(buffer.claim("sleepy", 5, ME, 0.0).id, ME)
    buffer.release(buffer.claim("busy", 20, OTHER, 1.0).id, OTHER)
    buffer.expire(100.0)
    assert "sleepy" in buffer.groups()  # nobody has waited for it
    with pytest.raises(FeedNotReady):
        buffer.claim("busy", 10, OTHER, 100.0)
    buffer.expire(100.0)
    assert set(buffer.groups()) == {"busy"} and buffer.counts.forgotten_groups == 1
    filled(buffer)
    assert buffer.claim("sleepy", 1, ME, 101.0).missed == 15


def test_there_are_only_so_many_groups() -> None:
    """A client cannot make groups without end."""
    buffer = WindowAllocator(windows=2, window_rows=10, max_groups=2)
    filled(buffer)
    for name in ("a", "b"):
        buffer.claim(name, 1, ME, 0.0)
    with pytest.raises(RequestRefused, match=r"at most 2 groups .*found already: a, b"):
        buffer.claim("c", 1, ME, 0.0)


@pytest.mark.parametrize("text", ["0:0:0", "7:3:123456", "1:2:3@4+5"])
def test_a_position_is_what_its_text_says(text: str) -> None:
    """Positions survive being written down."""
    assert str(Position.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3@4", "-1:0:0", "1:2:3@4+5x", "a:b:c", "1:2:" + "9" * 40])
def test_text_that_is_no_position_is_refused(text: str) -> None:
    """What cannot be read is refused with what was expected."""
    with pytest.raises(ValueError, match=r"seed:epoch:cursor"):
        Position.parse(text)


class Feeding(RuleBasedStateMachine):
    """A buffer under any sequence of events, against what it promises."""

    @initialize(
        windows=st.integers(2, 4), rows=st.integers(1, 12), serves=st.integers(1, 3), epoch_windows=st.integers(1, 4)
    )
    def begin(self, windows: int, rows: int, serves: int, epoch_windows: int) -> None:
        self.buffer = WindowAllocator(
            windows=windows, window_rows=rows, serves=serves, group_seconds=30.0, max_groups=3
        )
        self.serves, self.epoch_windows = serves, epoch_windows
        self.now = 0.0
        self.filling: Fill | None = None
        self.rows_in: dict[tuple[int, int], int] = {}
        self.held: list[tuple[Grant, object, str]] = []
        self.had: dict[str, dict[tuple[int, int, int, int], int]] = defaultdict(lambda: defaultdict(int))
        self.last: dict[str, tuple[int, int, int, int]] = {}

    @rule()
    def start_a_window(self) -> None:
        if self.filling is None:
            self.filling = self.buffer.begin()
            if self.filling is not None:  # nobody holds what is filled
                held = {e.window for grant, _, _ in self.held for e in grant.extents}
                assert self.filling.window not in held

    @precondition(lambda self: self.filling is not None)
    @rule(short=st.integers(0, 12))
    def finish_a_window(self, short: int) -> None:
        fill, self.filling = self.filling, None
        assert fill is not None
        over = fill.number + 1 >= self.epoch_windows
        rows = min(short, self.buffer.window_rows) if over else self.buffer.window_rows
        self.rows_in[fill.epoch, fill.number] = rows
        self.buffer.filled(fill.window, rows, fill.mark or StreamMark(), StreamMark(fill.number + 1), epoch_over=over)

    @precondition(lambda self: self.filling is not None)
    @rule()
    def lose_the_generator(self) -> None:
        self.filling = None
        self.buffer.abandon()

    @rule(
        group=st.sampled_from("ab"),
        n=st.integers(1, 30),
        owner=st.sampled_from([ME, OTHER]),
        lease=st.sampled_from([5.0, inf]),
    )
    def claim(self, group: str, n: int, owner: object, lease: float) -> None:
        try:
            grant = self.buffer.claim(group, n, owner, self.now, lease)
        except FeedNotReady as error:  # then something can still bring what is missing
            ready = [w for w in self.buffer._windows if w.state is State.READY]
            alone = len(self.buffer.groups()) == 1 and not self.held
            assert not (alone and error.available and len(ready) == len(self.buffer._windows))
            return
        assert 0 < grant.n_rows <= n
        for row in rows_of(grant):
            assert row[3] < self.rows_in[row[0], row[1]] and row[2] < self.serves
            assert self.last.get(group, (-1, -1, -1, -1)) < row  # in order, none twice
            self.last[group] = row
            self.had[group][row] += 1
        self.held.append((grant, owner, group))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100), delivered=st.booleans())
    def release(self, which: int, delivered: bool) -> None:
        grant, owner, _ = self.held.pop(which % len(self.held))
        self.buffer.release(grant.id, owner, delivered=delivered)

    @rule(owner=st.sampled_from([ME, OTHER]))
    def lose_a_consumer(self, owner: object) -> None:
        self.buffer.release_owner(owner)
        self.held = [entry for entry in self.held if entry[1] is not owner]

    @rule(seconds=st.sampled_from([1.0, 10.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.buffer.expire(self.now)
        alive = set(self.buffer._leases)  # what has run out is not held
        self.held = [entry for entry in self.held if entry[0].id in alive]

    @rule()
    def refresh(self) -> None:
        self.buffer.refresh()

    @invariant()
    def every_granted_row_is_somewhere(self) -> None:
        counts = self.buffer.counts
        assert counts.granted_rows == counts.delivered_rows + counts.abandoned_rows + self.buffer.held_rows

    @invariant()
    def what_is_held_is_ready(self) -> None:
        for grant, _, _ in self.held:
            for extent in grant.extents:
                window = self.buffer._windows[extent.window]
                assert window.state is State.READY and window.generation == extent.generation

    @invariant()
    def something_can_go_on(self) -> None:
        """With nobody holding anything, either a window can be filled, or every group has rows to take."""
        if self.held or self.filling is not None or any(w.state is State.FREE for w in self.buffer._windows):
            return
        assert any(self.buffer.available(name) for name in (*self.buffer.groups(), "new"))


Feeding.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFeeding = Feeding.TestCase


def test_a_row_range_says_all_that_a_reader_needs() -> None:
    """Window, generation, epoch, number, turn and stretch come with each part of a grant."""
    buffer = WindowAllocator(windows=2, window_rows=10)
    filled(buffer)
    assert buffer.claim("g", 4, ME, 0.0).extents == (RowRange(0, 1, 0, 0, 0, 10, 0, 4),)
