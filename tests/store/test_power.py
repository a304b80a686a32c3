"""The power goes: an ext4 in a loop image is shut down without flushing, and mounted again. What was durable is there."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.store.parts import CHANNELS, CYCLES, put, readable

from actscope.errors import RecordingError
from actscope.store import Store, StoreOptions, StoreReader, recover
from actscope.store.format import watermark

FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2  # what the journal had not written is gone, as it is when the power goes
MOST = 20_000


class Disk:
    """An image file with ext4 that can be mounted, and cut off."""

    def __init__(self, directory: Path) -> None:
        self.image, self.place = directory / "image", directory / "mounted"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(256 << 20)
        self._run("mkfs.ext4", "-q", "-F", str(self.image))

    def _run(self, *command: str) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not installed")
        if done.returncode:
            pytest.skip(f"cannot be done here: {' '.join(command)}: {done.stderr.strip()}")

    def mount(self) -> None:
        self._run("mount", "-o", "loop", str(self.image), str(self.place))

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.place)], check=True)

    def cut(self) -> None:
        """From here on nothing reaches the image."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk, mounted; skipped with the reason where that is not permitted."""
    made = Disk(tmp_path)
    made.mount()
    yield made
    subprocess.run(["umount", "-l", str(made.place)], capture_output=True)


def write_until_cut(disk: Disk, path: Path, chance: random.Random) -> int:
    """Append from a thread, cut the power at a random number; the highest number that was acknowledged as durable before."""
    options = StoreOptions(
        segment_bytes=chance.choice([1 << 18, 1 << 22]),
        buffer_bytes=1 << 17,
        direct=chance.choice(["auto", "no"]),
        commit_seconds=chance.choice([0.005, 0.05]),
        preallocate=chance.random() < 0.5,
    )
    if path.exists():
        store = Store.resume(path, options=options)
    else:
        store = Store.create(path, manifest={}, channels=CHANNELS, options=options)
    first = store.written

    def work() -> None:
        try:
            for number in range(first + 1, 1_000_000):
                put(store, number, MOST)
        except RecordingError:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    until = first + chance.randrange(1, 400)
    store._pipeline.wait(lambda: store.durable >= until, 30, "some messages")
    durable = store.durable
    disk.cut()
    thread.join()
    with pytest.raises(RecordingError):
        store.close()
    return durable


def test_what_was_durable_survives_power_loss(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut and mounted again, cycle after cycle on one recording; every durable message reads back, recovery never refuses."""
    path, chance = disk.place / "r", random.Random(3)
    for cycle in range(max(CYCLES // 10, 3)):
        monkeypatch.setattr(
            watermark, "boot_id", lambda cycle=cycle: bytes([cycle + 1]) * 16
        )  # each cycle is a run of the machine
        durable = write_until_cut(disk, path, chance)
        disk.unmount()
        disk.mount()
        monkeypatch.setattr(watermark, "boot_id", lambda cycle=cycle: bytes([cycle + 2]) * 16)
        reader = StoreReader.open(path)
        assert reader.watermark is not None and reader.watermark.durable.number >= durable
        good = readable(reader, MOST)
        assert good >= set(range(1, durable + 1))
        assert not any(one.acknowledged for one in reader.damage)
        assert not recover(path).lost
        assert readable(StoreReader.open(path), MOST) == good
