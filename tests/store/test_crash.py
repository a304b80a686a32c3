"""kill -9 at random points, over and over on one recording: whatever was acknowledged reads back bit for bit."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from support.store.crasher import MOST, main
from support.store.parts import CYCLES, readable

from actscope.store import StoreReader, recover

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["support.store.crasher"])  # a cycle must not take the time of a fresh interpreter


def crash(path: Path, seed: int, seconds: float) -> tuple[int, int]:
    """Run the crasher, kill it after a while; the highest numbers that it acknowledged as written and as durable."""
    ours, theirs = WARM.Pipe(duplex=False)
    child = WARM.Process(target=main, args=(str(path), seed, theirs))
    child.start()
    theirs.close()
    with ours:
        assert ours.recv_bytes() == b"ready"
        end, last = time.monotonic() + seconds, b"0 0"
        while ours.poll(max(end - time.monotonic(), 0)):
            last = ours.recv_bytes()
            if time.monotonic() > end:
                break
        child.kill()
        while True:  # what was on its way
            try:
                last = ours.recv_bytes()
            except EOFError:
                break
    child.join()
    assert child.exitcode == -9
    child.close()
    written, durable = map(int, last.split())
    return written, durable


def test_nothing_acknowledged_is_lost_when_killed_at_random_points(tmp_path: Path) -> None:
    """Each cycle goes on with the recording of the one before; bodies, keys, times, numbers without gaps, both kinds
    of promise."""
    path, chance, seen, killed_in_writing = tmp_path / "r", random.Random(7), 0, 0
    for cycle in range(CYCLES or 25):
        written, durable = crash(path, cycle, chance.random() * 0.08)
        reader = StoreReader.open(path)
        assert reader.watermark and not reader.watermark.closed
        assert reader.watermark.written.number >= written and reader.watermark.durable.number >= durable
        before = reader.entries
        assert not any(one.acknowledged for one in reader.damage)
        report = recover(path)
        killed_in_writing += report.cut_bytes > 0
        reader = StoreReader.open(path)
        numbers = reader.entries["number"].tolist()
        assert numbers == list(range(1, len(numbers) + 1)), "numbers without gaps"
        assert len(numbers) >= max(written, durable) >= 0
        assert reader.entries.tobytes() == before.tobytes(), "recovery keeps exactly what a reader saw before it"
        new = reader.entries[max(seen - 50, 0) :]
        for entry in new:
            reader.read(entry)
        seen = len(numbers)
    assert readable(reader, MOST) == set(range(1, seen + 1))
    assert not reader.verify() and seen > 100
    print(f"{seen} messages, {killed_in_writing} kills with something to cut")
