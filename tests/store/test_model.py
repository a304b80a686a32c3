"""A recording against a list in memory, through any sequence of appends, waits, closings, crashes and recoveries."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store.conftest import MEMORY
from support.store.parts import CHANNELS, CYCLES

from actscope.store import KEY_BYTES, Store, StoreOptions, StoreReader, recover

OPTIONS = st.builds(
    StoreOptions,
    segment_bytes=st.sampled_from([4096, 1 << 14, 1 << 20]),
    buffer_bytes=st.sampled_from([1 << 13, 1 << 14]),
    direct=st.sampled_from(["auto", "no"]),
    commit_seconds=st.sampled_from([0.001, 60.0]),
    preallocate=st.booleans(),
)


def snapshot(path: Path, to: Path) -> Path:
    """What kill -9 would leave: the watermark first, as files only grow, and only come, behind it."""
    to.mkdir()
    for name in ("watermark", "manifest.json"):
        shutil.copyfile(path / name, to / name)
    for name in sorted(one.name for one in path.glob("segment-*.mcap")):
        shutil.copyfile(path / name, to / name)
    return to


class Recordings(RuleBasedStateMachine):
    """`truth` is every body appended so far; the first `acknowledged` of them must survive anything."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="actscope-model-", dir=MEMORY if MEMORY.is_dir() else None))
        self.truth: list[bytes] = []
        self.acknowledged = 0
        self.lives = 0

    @initialize(options=OPTIONS)
    def create(self, options: StoreOptions) -> None:
        self.path = self.home / "0"
        self.store = Store.create(self.path, manifest={}, channels=CHANNELS, options=options)
        self.reader = StoreReader.open(self.path)

    @rule(bodies=st.lists(st.binary(max_size=300) | st.integers(0, 30_000).map(bytes), min_size=1, max_size=20))
    def append(self, bodies: list[bytes]) -> None:
        for data in bodies:
            self.truth.append(data)
            number = len(self.truth)
            parts: list[bytes | memoryview[int]] = [data[: number % 5], memoryview(data)[number % 5 :]]
            assert self.store.append(CHANNELS[number % 2], bytes([number % 256]) * KEY_BYTES, parts, number) == number

    @rule()
    def sync(self) -> None:
        assert self.store.sync(30) == len(self.truth) == self.store.durable
        self.acknowledged = len(self.truth)

    @rule(data=st.data())
    @precondition(lambda self: self.truth)
    def wait(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, len(self.truth)))
        self.store.wait_written(number, 30)
        self.acknowledged = max(self.acknowledged, number)

    @rule()
    def follow(self) -> None:
        self.reader.refresh()
        self.compare(self.reader)

    @rule(options=OPTIONS)
    def close_and_resume(self, options: StoreOptions) -> None:
        self.store.close()
        self.acknowledged = len(self.truth)
        reader = StoreReader.open(self.path)
        self.compare(reader)
        assert len(reader.entries) == len(self.truth) and not reader.verify()
        assert not recover(self.path).changed
        self.store = Store.resume(self.path, options=options)

    @rule(options=OPTIONS, torn=st.binary(max_size=40), cut=st.integers(0, 5000))
    def crash(self, options: StoreOptions, torn: bytes, cut: int) -> None:
        """Killed; bytes that were never acknowledged are cut off the last segment, and others stand in their place."""
        self.acknowledged = max(self.acknowledged, self.store.written)
        self.lives += 1
        left = snapshot(self.path, self.home / str(self.lives))
        self.store.close()
        self.path = left
        mark = StoreReader.open(left).watermark
        assert mark is not None
        last = max(left.glob("segment-*.mcap"), default=None)
        if last is not None and int(last.stem[-6:]) == mark.written.segment:
            with last.open("r+b") as file:
                file.truncate(max(last.stat().st_size - cut, mark.written.offset))
                file.seek(0, 2)
                file.write(torn)
        before = StoreReader.open(left)
        self.compare(before)
        report = recover(left)
        after = StoreReader.open(left)
        assert after.entries.tobytes() == before.entries.tobytes() and report.messages == len(after.entries)
        assert not after.verify() and not recover(left).changed
        del self.truth[len(after.entries) :]
        self.store, self.reader = Store.resume(left, options=options), after

    def compare(self, reader: StoreReader) -> None:
        """Numbers from 1 without gaps, at least what was acknowledged, each bit for bit."""
        assert self.acknowledged <= len(reader.entries) <= len(self.truth)
        for number, entry in enumerate(reader.entries, 1):
            assert entry["number"] == entry["time_ns"] == number
            assert reader.read(entry) == self.truth[number - 1]
        assert not any(one.acknowledged for one in reader.damage)

    @invariant()
    def promises_are_in_order(self) -> None:
        if hasattr(self, "store"):
            durable, written = self.store.durable, self.store.written
            assert durable <= written <= len(self.truth)
            assert written >= self.acknowledged

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.home, ignore_errors=True)


Recordings.TestCase.settings = settings(max_examples=CYCLES or 12, stateful_step_count=25, deadline=None)
TestRecordings = Recordings.TestCase
