"""What goes in comes out, in order, with keys, times and channels; and the promises of the writer in ordinary life."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.store.parts import BUFFERED, CHANNELS, Direct, body, make, put, readable

from actscope.errors import RecordingError, SettingsError
from actscope.store import ENTRY, KEY_BYTES, Store, StoreOptions, StoreReader, recover

TINY = StoreOptions(buffer_bytes=1 << 14, segment_bytes=1 << 15, commit_seconds=60)


@pytest.mark.parametrize("direct", ["auto", "no"])
def test_bodies_of_all_sizes_come_back(tmp_path: Path, direct: Direct) -> None:
    """From nothing to many times the buffers and the segment, in parts of any shape."""
    options = StoreOptions(direct=direct, buffer_bytes=1 << 14, segment_bytes=1 << 15)
    sizes = [0, 1, 7, 8, 9, 135, 136, 4095, 4096, 4097, 8191, 20_000, 100_000, 3]
    store = Store.create(tmp_path / "r", manifest={"x": [1]}, channels=["a"], options=options)
    with store:
        for number, size in enumerate(sizes, 1):
            data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
            shaped: Any = data.reshape(-1, 4).view(np.float32) if size % 4 == 0 and size else data
            parts: list[Any] = [b"<", memoryview(shaped), b"", bytearray(b">")]
            assert store.append("a", bytes(KEY_BYTES), parts, number) == number
    reader = StoreReader.open(tmp_path / "r")
    assert reader.entries.dtype == ENTRY and reader.entries["number"].tolist() == list(range(1, len(sizes) + 1))
    for number, (size, entry) in enumerate(zip(sizes, reader.entries, strict=True), 1):
        data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        got = reader.read(entry)
        assert got == b"<" + data.tobytes() + b">" and got.readonly and entry["length"] == size + 2
    assert reader.manifest == {"x": [1]} and reader.channels == ["a"] and not reader.damage and not reader.verify()


def test_segments_rotate_and_never_pass_their_size(tmp_path: Path) -> None:
    """Many segments, each closed, none larger than asked; numbers go on over all of them."""
    path = make(tmp_path / "r", 300, StoreOptions(segment_bytes=1 << 14, buffer_bytes=1 << 15))
    segments = sorted(path.glob("segment-*.mcap"))
    assert len(segments) > 3 and all(one.stat().st_size <= 1 << 14 for one in segments)
    assert readable(StoreReader.open(path)) == set(range(1, 301))


def test_appends_of_many_threads_keep_their_order(tmp_path: Path) -> None:
    """Each thread's messages come back in the order in which it appended them; numbers have no gaps."""
    with Store.create(tmp_path / "r", manifest={}, channels=["a"], options=TINY) as store:

        def work(who: int) -> None:
            for count in range(100):
                store.append("a", bytes([who]) * KEY_BYTES, [b"%d" % count] * 20, count)

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    reader = StoreReader.open(tmp_path / "r")
    assert reader.entries["number"].tolist() == list(range(1, 401)) and not reader.verify()
    for who in range(4):
        mine = [entry for entry in reader.entries if bytes(entry["key"])[0] == who]
        assert [bytes(reader.read(entry)) for entry in mine] == [b"%d" % count * 20 for count in range(100)]


def test_memory_is_bounded_and_blocking_is_counted(tmp_path: Path) -> None:
    """However fast the appender, no more than buffer_bytes are ever accepted and not in the file."""
    options = StoreOptions(buffer_bytes=1 << 20, direct="auto")
    with Store.create(tmp_path / "r", manifest={}, channels=["a"], options=options) as store:
        data = bytes(200_000)
        for _ in range(300):
            store.append("a", bytes(KEY_BYTES), [data], 0)
            assert store.stats().buffered_bytes <= 1 << 20
        store.sync()
        stats = store.stats()
    assert 0 < stats.buffered_bytes_max <= 1 << 20 and stats.buffered_bytes == 0
    assert stats.messages == 300 and stats.bytes > 60_000_000 and stats.seconds_blocked > 0 and stats.segments == 1


def test_written_and_durable_are_promises_that_can_be_waited_for(tmp_path: Path) -> None:
    """`wait_written` and `sync` return when the promise holds; a reader sees exactly what was promised."""
    with Store.create(tmp_path / "r", manifest={}, channels=CHANNELS, options=TINY) as store:
        assert store.written == store.durable == store.sync() == 0
        put(store, 1)
        put(store, 2)
        store.wait_written(1, timeout=10)
        assert store.written >= 1
        reader = StoreReader.open(tmp_path / "r")
        assert reader.watermark is not None and reader.watermark.written.number == store.written
        put(store, 3)
        assert store.sync(timeout=10) == 3 and store.durable == 3
        assert reader.refresh() == 1 and reader.watermark.durable.number == 3
        with pytest.raises(RecordingError, match="never appended"):
            store.wait_written(4)


def _is_durable(store: Store, number: int) -> bool:
    return store.durable >= number


def test_messages_become_durable_without_anybody_asking(tmp_path: Path) -> None:
    """The group commit comes by itself, within commit_seconds."""
    options = StoreOptions(commit_seconds=0.01)
    with Store.create(tmp_path / "r", manifest={}, channels=CHANNELS, options=options) as store:
        for number in range(1, 4):
            put(store, number)
            store._pipeline.wait(partial(_is_durable, store, number), 10, "the group commit")
        assert store.stats().syncs >= 1


def test_a_reader_follows_a_store_that_is_being_written(tmp_path: Path) -> None:
    """`refresh` finds new messages through rotation, resume and close; nothing is damage meanwhile."""
    path = tmp_path / "r"
    store = Store.create(path, manifest={}, channels=CHANNELS, options=TINY)
    reader, number = StoreReader.open(path), 0
    for turn in range(30):
        for _ in range(20):
            number = put(store, number + 1)
        store.wait_written(number)
        assert reader.refresh() == 20 and len(reader.entries) == number
        assert not reader.damage
        if turn % 10 == 9:
            store.close()
            assert reader.refresh() == 0 and not reader.damage and reader.watermark and reader.watermark.closed
            store = Store.resume(path, options=TINY)
    store.close()
    assert readable(reader) == set(range(1, 601)) and not reader.verify()


def test_resume_goes_on_in_a_new_segment_and_touches_no_old_one(tmp_path: Path) -> None:
    """Old segments keep every byte; manifest and channels are the same; a resume without messages leaves no trace
    but the watermark."""
    path = make(tmp_path / "r", 5)
    before = (path / "segment-000001.mcap").read_bytes()
    with Store.resume(path, options=BUFFERED) as store:
        assert put(store, 6) == 6
        with pytest.raises(RecordingError, match="not one of"):
            store.append("other", bytes(KEY_BYTES), [], 0)
    Store.resume(path).close()
    assert (path / "segment-000001.mcap").read_bytes() == before
    assert sorted(one.name for one in path.glob("segment*")) == ["segment-000001.mcap", "segment-000002.mcap"]
    assert readable(StoreReader.open(path)) == set(range(1, 7)) and not StoreReader.open(path).verify()


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    """Wrong channels, keys, times, manifests, options and places; the store goes on after a refusal."""
    with Store.create(tmp_path / "r", manifest={}, channels=CHANNELS) as store:
        for channel, key, time_ns, says in (
            ("rows", b"short", 0, "this has 5"),
            ("rows", bytes(KEY_BYTES), -1, "this is -1"),
            ("none", bytes(KEY_BYTES), 0, "'none' is not one of"),
        ):
            with pytest.raises(RecordingError, match=says):
                store.append(channel, key, [b""], time_ns)
        assert put(store, 1) == 1
    with pytest.raises(RecordingError, match="closed"):
        put(store, 2)
    store.close()
    with pytest.raises(RecordingError, match="not empty"):
        Store.create(tmp_path / "r", manifest={}, channels=[])
    manifests: list[tuple[dict[str, Any], list[str], str]] = [
        ({"a": object()}, ["x"], "as JSON"),
        ({"a": float("nan")}, ["x"], "as JSON"),
        ({}, ["x", "x"], "different names"),
        ({}, [""], "different names"),
    ]
    for manifest, channels, says in manifests:
        with pytest.raises(RecordingError, match=says):
            Store.create(tmp_path / "new", manifest=manifest, channels=channels)
    bad_options: list[dict[str, Any]] = [
        {"segment_bytes": 1},
        {"buffer_bytes": 1},
        {"direct": "maybe"},
        {"commit_seconds": 0},
    ]
    for wrong in bad_options:
        with pytest.raises(SettingsError, match=f"^{next(iter(wrong))} is "):
            StoreOptions(**wrong)
    for nothing in (tmp_path / "absent", tmp_path):
        with pytest.raises(RecordingError):
            StoreReader.open(nothing)
        with pytest.raises(RecordingError):
            recover(nothing)
        with pytest.raises(RecordingError):
            Store.resume(nothing)


def test_a_second_writer_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    """Resume and recovery of a recording that is being written name the process; readers are welcome."""
    with Store.create(tmp_path / "r", manifest={}, channels=CHANNELS) as store:
        put(store, 1)
        for attempt in (Store.resume, recover):
            with pytest.raises(RecordingError, match=f"process {os.getpid()}"):
                attempt(tmp_path / "r")
        assert put(store, 2) == 2
    crashed = make(tmp_path / "s", 2, closed=False)
    with pytest.raises(RecordingError, match="recover"):
        Store.resume(crashed)


def test_an_empty_recording_is_a_recording(tmp_path: Path) -> None:
    """Created and closed: no segment, no message, no damage; recovery of one that crashed before its first message works too."""
    path = make(tmp_path / "r", 0)
    assert not StoreReader.open(path).verify() and not len(StoreReader.open(path).entries)
    crashed = make(tmp_path / "s", 0, closed=False)
    assert recover(crashed).changed and not recover(crashed).changed
    with Store.resume(crashed) as store:
        put(store, 1)


def test_a_dropped_store_keeps_what_it_accepted(tmp_path: Path) -> None:
    """Without `close` the recording is not closed, but what was appended is in it, and the lock is free."""
    path = tmp_path / "r"
    store = Store.create(path, manifest={}, channels=CHANNELS, options=TINY)
    for number in range(1, 20):
        put(store, number)
    del store
    gc.collect()
    assert len(StoreReader.open(path).entries) == 19
    assert recover(path).messages == 19


def test_an_interpreter_that_ends_without_close_keeps_what_was_accepted(tmp_path: Path) -> None:
    """At exit the accepted messages are written."""
    code = (
        "import sys; from actscope.store import *; s = Store.create(sys.argv[1], manifest={}, channels=['a']);"
        "[s.append('a', bytes(64), [b'x' * 1000], 0) for _ in range(50)]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], check=True)
    assert recover(tmp_path / "r").messages == 50


def test_a_forked_child_must_not_write_and_does_not_keep_the_lock(tmp_path: Path) -> None:
    """The child's append raises, its exit writes nothing; the parent goes on, and when it has closed, another may write."""
    store = Store.create(tmp_path / "r", manifest={}, channels=CHANNELS, options=TINY)
    put(store, 1)
    asks, answers = os.pipe()
    goes, stays = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            put(store, 2)
            os.write(answers, b"wrote")
        except RecordingError as error:
            os.write(answers, str(error).encode())
        store.close()
        os.close(stays)
        os.read(goes, 1)
        os._exit(0)
    assert str(os.getpid()).encode() in os.read(asks, 1000)
    put(store, 2)
    store.close()
    with Store.resume(tmp_path / "r", options=TINY) as again:  # while the child lives
        put(again, 3)
    os.close(stays)
    os.waitpid(child, 0)
    for end in (asks, answers, goes):
        os.close(end)
    assert readable(StoreReader.open(tmp_path / "r")) == {1, 2, 3} and not StoreReader.open(tmp_path / "r").verify()


def test_an_interrupted_append_leaves_no_half_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the copy: nothing of the message remains, and the next one takes its number."""
    with Store.create(tmp_path / "r", manifest={}, channels=CHANNELS, options=BUFFERED) as store:
        put(store, 1)
        real, count = store._stream._put, [0]

        def interrupted(data: bytes) -> None:
            count[0] += 1
            if count[0] == 2:
                raise KeyboardInterrupt
            real(data)

        monkeypatch.setattr(store._stream, "_put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(store, 2)
        put(store, 2)
    reader = StoreReader.open(tmp_path / "r")
    assert readable(reader) == {1, 2} and not reader.verify() and bytes(reader.read(reader.entries[1])) == body(2)


def test_direct_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    """`no` is obeyed; `auto` gives the file system's answer."""
    with Store.create(tmp_path / "a", manifest={}, channels=[], options=StoreOptions(direct="no")) as store:
        assert (store.direct, store.direct_reason) == (False, "direct='no'")
    with Store.create(tmp_path / "b", manifest={}, channels=[]) as store:
        assert store.direct_reason.startswith("the file system took" if store.direct else "the file system refuses")
