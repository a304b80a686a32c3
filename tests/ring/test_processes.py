"""Rings between real processes: at full speed, and when either end is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ring.conftest import Child, MakeRing
from support.ring.reading import read_batch, said

from actscope.bench.ring import Stamper, Verifier
from actscope.ring import futex
from actscope.ring.host import RingReader, RingSpec, RingWriter
from actscope.ring.layout import Word
from actscope.ring.segment import Segment, segment_path, unlink


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(("row_capacity", "step_capacity"), [(2048, 256), (1 << 16, 16)])
def test_no_reader_ever_gets_a_torn_row_and_every_account_is_exact(
    child: Child, row_capacity: int, step_capacity: int
) -> None:
    """A writer that laps two readers all the time, by rows or by steps; 0.8 million rows are verified."""
    writer = RingWriter.create(RingSpec(row_capacity, 8, step_capacity, 256))
    readers = [child("read_until", writer.name, 200_000) for _ in range(2)]
    for reader in readers:
        assert said(reader) == {"attached": True}
    stamper = Stamper()
    with ThreadPoolExecutor() as pool:
        reached = [pool.submit(said, reader) for reader in readers]
        while not all(future.done() for future in reached):
            writer.write(*stamper.make(64))
    assert all(future.result()["reached"] >= 200_000 for future in reached)
    written = writer.stats()
    writer.close()
    for account in map(said, readers):
        assert (account["torn"], account["miscounted"]) == (0, 0)
        assert account["rows"] + account["missed_rows"] == written.rows
        assert account["steps"] + account["missed_steps"] == written.steps


def test_a_reader_that_stalls_counts_exactly_what_went_by(make_ring: MakeRing) -> None:
    writer, reader = make_ring(rows=256, width=8, steps=64, spans=64)
    stamper, verifier = Stamper(), Verifier()
    for lap in (1, 10, 100, 1000):
        for _ in range(lap):
            writer.write(*stamper.make(7))
        verifier.take(read_batch(reader))
    assert (verifier.torn_rows, verifier.miscounted_gaps) == (0, 0)
    stats = reader.stats()
    assert (stats.steps, stats.missed_steps) == (1 + 10 + 36 + 36, 64 + 964)
    assert (stats.rows + stats.missed_rows, stats.missed_rows) == (1111 * 7, 1028 * 7)


def test_when_the_writer_is_killed_the_reader_drains_the_ring_and_then_knows(child: Child) -> None:
    writer = child("write_and_hold", 4096, 64, 7)
    reader = RingReader.attach(said(writer)["name"], from_oldest=True)
    assert reader.writer_alive()
    kill(writer)
    assert reader.wait(5.0) and len(read_batch(reader).steps) == 10
    before = time.monotonic()
    assert not reader.wait(30.0) and not reader.writer_alive()
    assert time.monotonic() - before < 10.0  # it does not sleep out its time
    reader.close()
    unlink(reader.name)  # unless an engine that starts now has swept it


def test_a_writer_killed_in_the_middle_of_a_step_leaves_whole_steps_only(child: Child) -> None:
    for _ in range(3):
        writer = child("write_forever", 4096, 256, 64)
        reader, verifier = RingReader.attach(said(writer)["name"], from_oldest=True), Verifier()
        while verifier.rows < 10_000:
            assert reader.wait(10.0)
            _take(reader, verifier)
        kill(writer)
        while reader.wait(10.0):
            _take(reader, verifier)
        stats = reader.stats()
        assert verifier.torn_rows == 0 and not reader.writer_alive()
        assert stats.steps + stats.missed_steps >= verifier.rows // 64
        reader.close()
        unlink(reader.name)


def _take(reader: RingReader, verifier: Verifier) -> None:
    batch = reader.read()
    if batch is not None:
        verifier.take(batch)


def test_a_reader_that_is_killed_or_just_ends_does_not_disturb_the_writer(make_ring: MakeRing, child: Child) -> None:
    writer, reader = make_ring(rows=64, width=8)
    victim = child("read_until", writer.name, 10)
    leaver = child("attach_and_leave", writer.name)
    assert said(victim) == {"attached": True} and said(leaver)["attached"] == writer.name
    leaver.wait()
    kill(victim)
    stamper = Stamper()
    for _ in range(100):
        writer.write(*stamper.make(4))
    assert segment_path(writer.name).exists() and reader.wait(1.0)
    assert len(read_batch(reader).steps) == 16 and writer.stats().rows == 400


def test_a_name_that_is_removed_while_attached_changes_nothing_for_those_who_have_it(make_ring: MakeRing) -> None:
    writer, reader = make_ring(width=8)
    segment_path(writer.name).unlink()
    writer.write(*Stamper().make(5))
    assert reader.wait(5.0) and len(read_batch(reader).rows) == 5 and reader.writer_alive()


def test_a_sleeping_reader_in_another_process_is_woken_by_a_write(child: Child) -> None:
    writer = RingWriter.create(RingSpec(64, 8, 16, 16))
    reader = child("read_until", writer.name, 3)
    said(reader)
    writer.write(*Stamper().make(3))
    assert said(reader)["reached"] == 3
    writer.close()
    assert said(reader)["missed_rows"] == 0


def test_a_sleeper_is_woken_by_the_write_itself_and_not_by_its_next_nap(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actscope.ring.reader._NAP_S", 12.0)
    writer, reader = make_ring(width=8)
    with ThreadPoolExecutor() as pool:
        for stamped in map(Stamper().make, (1, 2, 3)):
            waiting = pool.submit(reader.wait, 12.0)
            while not reader._lock.locked():  # it is held while the reader sleeps
                assert not waiting.done()
            writer.write(*stamped)
            assert waiting.result(timeout=8.0)
            reader.read()


def test_a_futex_wait_works_on_a_mapping_that_is_read_only(make_ring: MakeRing) -> None:
    writer, _ = make_ring()
    segment = Segment.attach(writer.name)
    before = time.monotonic()
    assert not futex.wait(segment.published_address, 0, 0.05)
    assert 0.04 < time.monotonic() - before < 5.0
    assert futex.wait(segment.published_address, 1, 5.0)  # it is not 1, so there is nothing to wait for
    segment.close()


def test_waiting_works_also_where_there_is_no_futex(make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futex, "_SYS_FUTEX", None)
    writer, reader = make_ring(width=8)
    assert not reader.wait(0.01)
    thread = threading.Thread(target=writer.write, args=Stamper().make(2))
    thread.start()
    assert reader.wait(10.0)
    thread.join()


def test_a_wait_does_not_hold_up_other_threads_and_ends_when_the_reader_is_closed(make_ring: MakeRing) -> None:
    _, reader = make_ring()
    outcome: list[bool] = []
    thread = threading.Thread(target=lambda: outcome.append(reader.wait(30.0)))
    thread.start()
    while not reader._lock.locked():  # it is held while the reader sleeps
        assert thread.is_alive()
    before = time.monotonic()
    reader.close()
    thread.join(10.0)
    assert outcome == [False] and time.monotonic() - before < 5.0


def test_beat_is_seen_by_readers(make_ring: MakeRing) -> None:
    writer, reader = make_ring()
    segment = reader._segment
    assert segment is not None
    before = segment.words[Word.HEARTBEAT_NS]
    writer.beat()
    assert segment.words[Word.HEARTBEAT_NS] > before > 0
