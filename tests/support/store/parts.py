"""Small recordings with bodies that tell their own numbers, and what must hold of any recording whatever was done to it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Literal

from actscope.errors import RecordingDamaged
from actscope.store import KEY_BYTES, Store, StoreOptions, StoreReader

#: how many cycles a heavy test makes when asked for the full count
CYCLES = int(os.environ.get("ACTSCOPE_TEST_CYCLES", "0"))
Direct = Literal["auto", "yes", "no"]
CHANNELS = ["rows", "ledger"]
BUFFERED = StoreOptions(direct="no", preallocate=False, buffer_bytes=1 << 16, commit_seconds=60)


def body(number: int, most: int = 200) -> bytes:
    """The body of a message: its length and bytes follow from its number."""
    source = random.Random(number)
    return source.randbytes(source.randrange(most))


def put(store: Store, number: int, most: int = 200) -> int:
    """Append message `number`; in two parts, so that parts are tested everywhere."""
    data = body(number, most)
    got = store.append(CHANNELS[number % 2], key(number), [data[:7], memoryview(data)[7:]], number * 1000)
    assert got == number
    return got


def key(number: int) -> bytes:
    """The key of a message."""
    return number.to_bytes(8, "little").ljust(KEY_BYTES, b"k")


def make(path: Path, count: int, options: StoreOptions = BUFFERED, *, closed: bool = True, most: int = 200) -> Path:
    """A recording of `count` messages; not closed, it is what a process leaves that dies after all were written."""
    store = Store.create(path, manifest={"made": "for a test"}, channels=CHANNELS, options=options)
    for number in range(1, count + 1):
        put(store, number, most)
    if closed:
        store.close()
        return path
    if count:
        store.wait_written(count)
    crashed = path.with_name(path.name + "-crashed")
    shutil.copytree(path, crashed)
    store.close()
    return crashed


def readable(reader: StoreReader, most: int = 200) -> set[int]:
    """Numbers of the messages that read back; each is bit for bit what was written, and damaged ones say so."""
    good = set()
    for entry in reader.entries:
        number = int(entry["number"])
        try:
            data = reader.read(entry)
        except RecordingDamaged:
            continue
        assert bytes(data) == body(number, most), f"message {number} reads back wrong"
        assert bytes(entry["key"]) == key(number) and entry["time_ns"] == number * 1000
        assert reader.channels[entry["channel"]] == CHANNELS[number % 2]
        good.add(number)
    return good


def files(path: Path) -> dict[str, bytes]:
    """Every file of a recording."""
    return {one.name: one.read_bytes() for one in sorted(path.iterdir())}


def put_back(path: Path, content: dict[str, bytes]) -> None:
    """Make a directory hold exactly these files."""
    path.mkdir(exist_ok=True)
    for one in path.iterdir():
        if one.name not in content:
            one.unlink()
    for name, data in content.items():
        (path / name).write_bytes(data)
