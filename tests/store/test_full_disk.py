"""Real full disks: writing ends with RecordingPoisoned, and everything that was acknowledged is still there."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.store.parts import CHANNELS, put, readable

from actscope.errors import RecordingError, RecordingPoisoned
from actscope.store import Store, StoreOptions, StoreReader, recover

MOST = 5000
OPTIONS = StoreOptions(buffer_bytes=1 << 15, segment_bytes=1 << 18, commit_seconds=0.01)


def fill(path: Path) -> tuple[int, int]:
    """Append until the disk is full; the highest acknowledged numbers, written and durable."""
    store = Store.create(path, manifest={}, channels=CHANNELS, options=OPTIONS)
    with pytest.raises(RecordingPoisoned):
        for number in range(1, 100_000):
            put(store, number, MOST)
            if number == 5:
                store.sync()
    with pytest.raises(RecordingPoisoned, match="make room"):
        store.close()
    assert store.poisoned is not None and store.written >= store.durable > 0
    return store.written, store.durable


def judge(path: Path, written: int) -> int:
    """What was acknowledged reads back; recovery works with the room that there is now."""
    assert readable(StoreReader.open(path), MOST) >= set(range(1, written + 1))
    messages = recover(path).messages
    assert messages >= written and not StoreReader.open(path).verify()
    return messages


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_file_system(small_disk: Path) -> None:
    """ENOSPC: the recording up to there is whole, also when recovery itself first finds no room, and goes on when
    there is some."""
    path = small_disk / "r"
    written, _ = fill(path)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    try:
        recover(path)
    except RecordingError as error:
        assert "No space" in str(error)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    messages = judge(path, written)
    with Store.resume(path, options=OPTIONS) as store:
        put(store, messages + 1, MOST)
    assert readable(StoreReader.open(path), MOST) == set(range(1, messages + 2))


@pytest.mark.parametrize("limit", [98_304, 100_000])
def test_a_file_size_limit(tmp_path: Path, limit: int) -> None:
    """EFBIG, by RLIMIT_FSIZE; where the limit is within a block, a direct write fails with EINVAL."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        written, _ = fill(tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    judge(tmp_path / "r", written)
