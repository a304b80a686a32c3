"""The flight recorder: what is marked is kept with its history, the rest is forgotten, and every count is exact."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recordings.flight import SECOND, SITES, WIDTH, Pilot, flying, kept

from actscope.errors import RecordingError, RecordingPoisoned, SettingsError
from actscope.frames import ROW_META, Frame, Span, SpanFlag, Step
from actscope.recording.flight.marks import MarkResult
from actscope.recording.flight.spool import DiskSpool
from actscope.recording.flight.triggers import parse_rule
from actscope.recording.flight.windows import TokensOrTime
from actscope.recording.reading.recording import Recording

ROW_BYTES = WIDTH * 4 * len(SITES) + ROW_META.itemsize

Place = dict[str, Any]


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Options of both homes of the rows: every test with it holds for both."""
    return {} if request.param == "memory" else {"directory": str(tmp_path / "spool")}


def decode(pilot: Pilot, n: int, *requests: str) -> None:
    for _ in range(n):
        pilot.step(dict.fromkeys(requests, 1))


def test_a_mark_after_the_end_keeps_the_whole_request_and_nothing_of_the_others(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        pilot.step({"a": 5, "b": 3})
        decode(pilot, 10, "a", "b")
        pilot.end("a", "b")
        answer = pilot.flight.mark("a", "by hand").result()
    assert answer == MarkResult("a", "kept", False, 15)
    assert kept(tmp_path / "r", "a") == list(range(15))
    recording = Recording.open(tmp_path / "r")
    assert recording.requests == ["a"]
    assert [(m.request, m.why) for m in recording.marks] == [("a", "by hand")]
    summary = recording.request("a")
    assert (summary.computed, summary.present, summary.ended, summary.n_prompt) == (15, 15, True, 4)
    assert recording.n_rows == 15


def test_labels_of_kept_rows_are_those_of_the_steps(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        steps = [pilot.step({"b": 2, "a": 6})] + [pilot.step({"a": 1, "b": 1}) for _ in range(4)]
        pilot.flight.mark("a").result()
    labels = Recording.open(tmp_path / "r").labels("a")
    expected = np.concatenate(
        [
            s.meta[[span.offset + i for span in s.spans if span.request == "a" for i in range(span.n_rows)]]
            for s in steps
        ]
    )
    for name in ("position", "token_id", "flags", "step"):
        assert labels[name].tolist() == expected[name].tolist()


def test_a_mark_in_mid_request_keeps_the_past_and_the_future(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        decode(pilot, 8, "a", "b")
        answer = pilot.flight.mark("a").result()
        decode(pilot, 8, "b", "a")
        pilot.end("a", "b")
    assert answer == MarkResult("a", "keeping", True, 8)
    assert kept(tmp_path / "r", "a") == list(range(16))
    assert Recording.open(tmp_path / "r").requests == ["a"]


def test_marking_again_changes_nothing(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        decode(pilot, 8, "a")
        first = pilot.flight.mark("a", "x").result()
        second = pilot.flight.mark("a", "x").result()
        pilot.end("a")
        third = pilot.flight.mark("a", "x").result()
    assert first == second == MarkResult("a", "keeping", True, 8)
    assert third == MarkResult("a", "kept", False, 8)
    assert Recording.open(tmp_path / "r").n_rows == 8
    assert len(Recording.open(tmp_path / "r").marks) == 1


def test_a_note_is_written_beside_the_mark_of_a_request_that_is_kept(tmp_path: Path) -> None:
    """Whether it comes before the mark or after it; of a request that nobody keeps, nothing is written."""
    with flying(tmp_path / "r") as pilot:
        pilot.flight.note("a", "adapter x")
        pilot.flight.note("b", "adapter y")
        decode(pilot, 4, "a", "b")
        pilot.flight.mark("a", "asked").result()
        pilot.flight.note("a", "weights 1")
        pilot.end("a", "b")
    marks = [(mark.request, mark.why) for mark in Recording.open(tmp_path / "r").marks]
    assert marks == [("a", "asked"), ("a", "adapter x"), ("a", "weights 1")]


def test_windows_in_tokens_are_exact_to_the_row_also_within_a_chunk_of_the_prompt(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        pilot.step({"b": 3, "a": 20})
        answer = pilot.flight.mark("a", before=TokensOrTime(tokens=5), after=TokensOrTime(tokens=3)).result()
        decode(pilot, 10, "a", "b")
    assert answer.rows == 6
    assert kept(tmp_path / "r", "a") == list(range(14, 23))


def test_windows_in_seconds_count_from_the_last_row(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        for _ in range(10):
            pilot.now_ns += SECOND
            pilot.step({"a": 1})
        pilot.flight.mark("a", before=TokensOrTime(ns=3 * SECOND), after=TokensOrTime(ns=2 * SECOND)).result()
        for _ in range(10):
            pilot.now_ns += SECOND
            pilot.step({"a": 1})
    assert kept(tmp_path / "r", "a") == list(range(6, 12))


def test_a_wider_mark_adds_only_what_the_first_left_out(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        pilot.step({"a": 20})
        pilot.flight.mark("a", before=TokensOrTime(tokens=2), after=TokensOrTime(tokens=0)).result()
        pilot.flight.mark("a", before=TokensOrTime(tokens=9), after=TokensOrTime(tokens=0)).result()
        answer = pilot.flight.mark("a").result()
    assert answer.rows == 20
    assert kept(tmp_path / "r", "a") == list(range(20))
    assert Recording.open(tmp_path / "r").n_rows == 20


def test_what_the_bound_of_bytes_pushes_out_is_forgotten_and_named(tmp_path: Path, place: Place) -> None:
    """A megabyte holds a known number of steps of 100 rows; the answer to a mark lists the expired positions."""
    with flying(tmp_path / "r", bytes=1 << 20, **place) as pilot:
        for _ in range(100):
            pilot.step({"a": 100})
        held = pilot.flight.settle()
        answer = pilot.flight.mark("a").result()
        gone = 10_000 - held.held_rows
        assert held.held_bytes_max <= 1 << 20
        assert held.held_bytes > (1 << 20) - 100 * ROW_BYTES - 2048
        assert held.forgotten_rows == gone
        assert answer == MarkResult("a", "keeping", True, held.held_rows, ((0, gone),))
        assert answer.missing == gone
    assert kept(tmp_path / "r", "a") == list(range(gone, 10_000))


def test_what_is_older_than_the_bound_of_time_is_forgotten(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", seconds=60, **place) as pilot:
        pilot.step({"old": 4}, end=("old",))
        for _ in range(10):
            pilot.now_ns += 10 * SECOND
            pilot.step({"a": 1})
        assert pilot.flight.mark("old").result() == MarkResult("old", "forgotten", forgotten=((0, 4),))
        answer = pilot.flight.mark("a").result()
        assert (answer.rows, answer.forgotten) == (7, ((0, 3),))  # rows of 60 s ago are still there
        pilot.now_ns += 61 * SECOND
        stats = pilot.flight.settle()
        assert (stats.held_rows, stats.held_bytes, stats.held_steps) == (0, 0, 0)
    assert kept(tmp_path / "r", "a") == list(range(3, 10))
    assert kept(tmp_path / "r", "old") == []


def test_rows_of_a_request_that_are_lost_outside_the_marks_window_are_not_missed(tmp_path: Path) -> None:
    with flying(tmp_path / "r", seconds=60) as pilot:
        for _ in range(10):
            pilot.now_ns += 10 * SECOND
            pilot.step({"a": 1})
        assert pilot.flight.mark("a", before=TokensOrTime(tokens=4)).result().forgotten == ()
        assert pilot.flight.mark("a", before=TokensOrTime(tokens=8)).result().forgotten == ((1, 3),)
        assert pilot.flight.mark("a", before=TokensOrTime(ns=70 * SECOND)).result().forgotten == ((2, 3),)


def test_an_unknown_id_is_distinguished_from_a_forgotten_one(tmp_path: Path) -> None:
    with flying(tmp_path / "r", seconds=5) as pilot:
        pilot.step({"a": 3}, end=("a",))
        pilot.now_ns += 10 * SECOND
        pilot.flight.settle()
        assert pilot.flight.mark("never").result() == MarkResult("never", "unknown")
        assert pilot.flight.mark("a").result().state == "forgotten"


def test_what_was_kept_is_known_to_be_kept_when_its_history_has_left(tmp_path: Path) -> None:
    with flying(tmp_path / "r", seconds=5) as pilot:
        pilot.step({"a": 3}, end=("a",))
        pilot.flight.mark("a").result()
        pilot.now_ns += 10 * SECOND
        pilot.flight.settle()
        assert pilot.flight.mark("a").result() == MarkResult("a", "kept", False, 3)


def test_a_mark_before_the_request_begins_waits_for_it_and_not_for_ever(tmp_path: Path) -> None:
    with flying(tmp_path / "r") as pilot:
        assert pilot.flight.mark("soon", wait_seconds=10).result().state == "pending"
        assert pilot.flight.mark("late", wait_seconds=10).result().state == "pending"
        pilot.now_ns += 5 * SECOND
        pilot.step({"soon": 3, "other": 2})
        pilot.now_ns += 6 * SECOND
        pilot.step({"soon": 1, "late": 3})
        pilot.end("soon", "late", "other")
    assert kept(tmp_path / "r", "soon") == [0, 1, 2, 3]
    assert Recording.open(tmp_path / "r").requests == ["soon"]


def test_pending_marks_are_bounded(tmp_path: Path) -> None:
    with flying(tmp_path / "r", pending=2) as pilot:
        for name in ("a", "b", "a"):
            pilot.flight.mark(name, wait_seconds=10).result()
        with pytest.raises(RecordingError, match="2 marks wait"):
            pilot.flight.mark("c", wait_seconds=10).result()
        pilot.now_ns += 11 * SECOND
        assert pilot.flight.mark("c", wait_seconds=10).result().state == "pending"


def test_all_that_runs_and_what_began_last_can_be_marked_without_their_names(tmp_path: Path) -> None:
    with flying(tmp_path / "r") as pilot:
        assert pilot.flight.mark_last().result() == []
        pilot.step({"a": 2, "b": 2, "c": 2}, end=("b",))
        assert [m.request for m in pilot.flight.mark_running().result()] == ["a", "c"]
        pilot.step({"d": 2}, end=("d",))
        assert [m.request for m in pilot.flight.mark_last().result()] == ["d"]
    assert Recording.open(tmp_path / "r").requests == ["a", "c", "d"]


def test_an_id_that_is_used_again_is_another_request(tmp_path: Path) -> None:
    with flying(tmp_path / "r") as pilot:
        pilot.step({"a": 5}, end=("a",))
        pilot.step({"a": 2})
        assert pilot.flight.mark("a").result() == MarkResult("a", "keeping", True, 2)


def test_rows_computed_once_more_are_kept_as_they_came_and_are_no_longer_missed(tmp_path: Path) -> None:
    with flying(tmp_path / "r", seconds=5) as pilot:
        pilot.step({"a": 4})
        pilot.now_ns += 10 * SECOND
        pilot.positions["a"] = 0  # preempted: it begins again, under the same id and without an end
        pilot.step({"a": 6})
        answer = pilot.flight.mark("a").result()
    assert answer == MarkResult("a", "keeping", True, 6)
    assert kept(tmp_path / "r", "a") == list(range(6))


# --- bounds and losses ---------------------------------------------------------------------------------------------------


def test_a_queue_that_is_full_drops_rows_and_counts_them_exactly(tmp_path: Path) -> None:
    """While the thread is held, exactly the steps that fit are kept; the others' labels still come, so marks name them."""
    with flying(tmp_path / "r", queue_bytes=1 << 20) as pilot:
        pilot.step({"a": 1})
        pilot.flight.settle()
        with pilot.thread_held():
            for _ in range(10):
                pilot.step({"a": 1000})
            dropped = pilot.flight.stats().dropped_rows
        answer = pilot.flight.mark("a").result()
        assert 0 < dropped < 10_000
        assert answer.rows == 10_001 - dropped
        assert answer.dropped == ((10_001 - dropped, 10_001),)
        assert answer.forgotten == ()
        pilot.step({"a": 2})
        assert pilot.flight.settle().dropped_rows == dropped
    assert kept(tmp_path / "r", "a") == [*range(10_001 - dropped), 10_001, 10_002]


def test_the_queue_is_bounded_whatever_comes(tmp_path: Path) -> None:
    with flying(tmp_path / "r", queue_bytes=1 << 16) as pilot:
        pilot.flight.settle()
        with pilot.thread_held():
            for _ in range(500):
                pilot.step({"a": 20})
            stats = pilot.flight.stats()
        assert stats.queued_bytes <= (1 << 16) * 9 // 8
        pilot.step({"a": 1})
        assert pilot.flight.settle().queued_bytes == 0
        answer = pilot.flight.mark("a").result()
    assert answer.rows + answer.missing == 10_001  # also what not even the labels of had come
    assert answer.missing == stats.dropped_rows


def test_the_bound_of_bytes_holds_at_every_moment_and_a_marked_step_is_kept_even_when_it_is_larger(
    tmp_path: Path,
) -> None:
    with flying(tmp_path / "r", bytes=1 << 20) as pilot:
        pilot.flight.mark("a", wait_seconds=10).result()
        pilot.step({"a": 8000})  # more than all of the memory: it goes straight on
        pilot.step({"a": 10})
        stats = pilot.flight.settle()
        assert stats.held_bytes <= 1 << 20
        assert stats.held_rows == 10
    assert kept(tmp_path / "r", "a") == list(range(8010))


def test_a_history_far_larger_than_the_recorders_queue_moves_without_a_loss(tmp_path: Path, place: Place) -> None:
    """40 MB through a queue of 4 MB, in steps of which one alone would fill it."""
    values = np.arange(2500 * 512, dtype=np.float32).reshape(2500, 512)
    with flying(tmp_path / "r", recorder_bytes=16 << 20, bytes=64 << 20, **place) as pilot:
        assert pilot.flight.recorder.options.queue_bytes == 4 << 20
        for i in range(4):
            pilot.flight.write(pilot.make({"a": 2500}), [Frame(site, values + i) for site in SITES])
        assert pilot.flight.mark("a").result().rows == 10_000
    recording = Recording.open(tmp_path / "r")
    assert recording.drops == []
    for site in SITES:
        rows = recording.rows(site, "a")
        assert rows.labels["position"].tolist() == list(range(10_000))
        for i in range(4):
            assert (rows.values[2500 * i : 2500 * (i + 1)] == values + i).all()


def test_rows_that_the_disk_refuses_are_counted_and_the_recorder_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flying(tmp_path / "r", directory=str(tmp_path / "spool")) as pilot:
        pilot.step({"a": 3})
        pilot.flight.settle()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", _no_space)
            pilot.step({"a": 4})
            stats = pilot.flight.settle()
        pilot.step({"a": 5})
        answer = pilot.flight.mark("a").result()
    assert stats.dropped_rows == 4
    assert (answer.rows, answer.dropped) == (8, ((3, 7),))
    assert kept(tmp_path / "r", "a") == [0, 1, 2, 7, 8, 9, 10, 11]


def _no_space(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def test_a_failed_recording_costs_only_its_rows_which_are_counted_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with flying(tmp_path / "r") as pilot:
        pilot.step({"a": 3})
        pilot.flight.settle()
        pilot.flight.recorder._messages.fail(RecordingPoisoned("the disk is full"))
        answer = pilot.flight.mark("a").result()
        pilot.step({"a": 2})
        pilot.flight.settle()
        told = pilot.flight.describe()
    assert answer.rows == 3
    assert told["failure"] == "the disk is full"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'r'}: recording has stopped: the disk is full"
    ]
    assert told["kept"]["lost_rows"] == 5
    assert told["flight"]["rows"] == 5


def test_a_step_that_makes_no_sense_is_counted_and_the_next_one_is_taken(tmp_path: Path) -> None:
    with flying(tmp_path / "r") as pilot:
        odd = Step(1, 0, (Span("a", 0, 3),), np.zeros(3, ROW_META))
        pilot.flight.write(odd, [Frame(SITES[0], np.zeros(3, np.float32))])
        pilot.step({"b": 3})
        assert pilot.flight.settle().dropped_rows == 3
        assert pilot.flight.mark("a").result().dropped == ((0, 3),)
        assert pilot.flight.mark("b").result().rows == 3


def test_after_close_nothing_is_taken_and_no_call_blocks(tmp_path: Path) -> None:
    with flying(tmp_path / "r") as pilot:
        pilot.step({"a": 3})
    pilot.step({"a": 4})
    assert pilot.flight.stats().dropped_rows == 4
    with pytest.raises(RecordingError, match="closed"):
        pilot.flight.mark("a")
    pilot.flight.close()


def test_bfloat16_rows_come_back_bit_for_bit(tmp_path: Path, place: Place) -> None:
    torch = pytest.importorskip("torch")
    with flying(tmp_path / "r", **place) as pilot:
        step = pilot.make({"a": 5, "b": 5})
        rows = torch.randn(10, WIDTH).to(torch.bfloat16)
        pilot.flight.write(step, [Frame(SITES[0], rows)])
        pilot.flight.mark("b").result()
    found = Recording.open(tmp_path / "r")[SITES[0]]
    assert found.source_dtype == "bfloat16"
    assert torch.equal(found.torch(), rows[5:])
    assert len(Recording.open(tmp_path / "r")[SITES[1]]) == 0


# --- on disk -----------------------------------------------------------------------------------------------------------


def test_rows_on_disk_are_private_bounded_and_gone_when_they_are_dropped(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool", 1 << 16)
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    arrays = [np.random.default_rng(i).normal(size=(100, 16)) for i in range(20)]
    tickets = [spool.put([array]) for array in arrays]
    assert list((tmp_path / "spool").iterdir()) == []  # no name: gone with the process, whatever ends it
    for ticket, array in zip(tickets, arrays, strict=True):
        assert (spool.rows(ticket, 0, [(0, 3), (90, 100)]) == array[[*range(3), *range(90, 100)]]).all()
    for i, ticket in enumerate(tickets):
        spool.drop(ticket)
        assert spool.bytes <= sum(a.nbytes for a in arrays[i + 1 :]) + (1 << 16) + arrays[0].nbytes
    assert spool.bytes == 0
    spool.close()


def test_what_a_dead_process_has_left_is_wiped_and_nothing_else_is_touched(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir(mode=0o700)
    (directory / "flight-0123456789abcdef.rows").write_bytes(b"left")
    (directory / "mine.txt").write_text("stays")
    DiskSpool(directory, 1 << 20).close()
    assert [path.name for path in directory.iterdir()] == ["mine.txt"]


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(SettingsError, match="chmod 700"):
        DiskSpool(tmp_path / "open", 1 << 20)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(SettingsError, match="link"):
        DiskSpool(tmp_path / "link", 1 << 20)


# --- samples -----------------------------------------------------------------------------------------------------------


def test_a_sample_keeps_the_same_requests_every_time_and_about_its_share(tmp_path: Path) -> None:
    chosen = []
    for run in ("first", "second"):
        with flying(tmp_path / run, (parse_rule("sample 0.25"),)) as pilot:
            for i in range(200):
                pilot.step({f"request-{i}": 3}, end=(f"request-{i}",))
        chosen.append(Recording.open(tmp_path / run).requests)
    assert chosen[0] == chosen[1]
    assert 25 < len(chosen[0]) < 75
    for request in chosen[0]:
        assert kept(tmp_path / "first", request) == [0, 1, 2]
    assert {mark.why for mark in Recording.open(tmp_path / "first").marks} == {"sample 0.25"}


def test_an_abort_is_kept_as_what_it_is(tmp_path: Path) -> None:
    with flying(tmp_path / "r") as pilot:
        pilot.step({"a": 3})
        pilot.flight.mark("a").result()
        flags = SpanFlag.END | SpanFlag.ABORTED
        pilot.flight.write(Step(2, pilot.now_ns, (Span("a", 4, 0, 0, flags, 4),), np.empty(0, ROW_META)), [])
    summary = Recording.open(tmp_path / "r").request("a")
    assert (summary.aborted, summary.ended, summary.present, summary.computed) == (True, True, 4, 3)


def test_bits_of_bfloat16_in_numpy_stay_bfloat16(tmp_path: Path, place: Place) -> None:
    with flying(tmp_path / "r", **place) as pilot:
        meta = np.zeros(2, ROW_META)
        meta["position"] = [0, 1]
        step = Step(1, SECOND, (Span("a", 0, 2),), meta)
        bits = np.array([[0x3FC0] * WIDTH, [0xC000] * WIDTH], np.uint16)
        pilot.flight.write(step, [Frame(site, bits, "bfloat16") for site in SITES])
        pilot.flight.mark("a").result()
    rows = Recording.open(tmp_path / "r")[SITES[0]]
    assert rows.source_dtype == "bfloat16"
    assert rows[:][:, 0].tolist() == [1.5, -2.0]
