"""Whatever lies in the directory, readers answer with our own errors and never with wrong data."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.store.parts import BUFFERED, CYCLES, files, make, put_back, readable

from actscope.errors import RecordingDamaged, RecordingError
from actscope.store import Store, StoreReader, recover
from actscope.store.format.envelope import Prologue, epilogue, read_index
from actscope.store.format.source import Source


def everything(path: Path) -> set[int]:
    """Open, read, verify, refresh; the messages that could be read. Any error but ours fails the test."""
    try:
        reader = StoreReader.open(path)
        good = readable(reader)
        reader.verify()
        reader.refresh()
    except (RecordingError, RecordingDamaged):
        return set()
    return good


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small closed recording of several segments."""
    options = type(BUFFERED)(direct="no", preallocate=False, segment_bytes=4096, buffer_bytes=1 << 14)
    return files(make(tmp_path_factory.mktemp("whole") / "r", 24, options))


@pytest.mark.parametrize("seed", range(CYCLES or 60))
def test_files_changed_at_many_places(quick_path: Path, whole: dict[str, bytes], seed: int) -> None:
    """Stretches overwritten, cut out, doubled, zeroed: nothing reads back wrong, recovery and salvage end, and what
    was readable stays."""
    path, changed, chance = quick_path / "r", dict(whole), random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        name = chance.choice(sorted(changed))
        old = changed[name]
        a, b = sorted((chance.randint(0, len(old)), chance.randint(0, len(old))))
        b = chance.choice([b, min(a + 20, b)])
        middle = chance.choice([chance.randbytes(b - a), b"", old[a:b] * 2, bytes(b - a)])
        changed[name] = old[:a] + middle + old[b:]
    put_back(path, changed)
    good = everything(path)
    try:
        recover(path, salvage=True)
    except RecordingError:
        assert not good or changed["manifest.json"] != whole["manifest.json"]
        return
    assert everything(path) >= good
    assert not recover(path).changed


def test_files_that_stand_in_each_others_place(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Segments swapped, of another recording, or with a foreign manifest or watermark: seen, and never read as ours."""
    other = files(make(tmp_path / "other", 24, BUFFERED))
    path, (one, two) = tmp_path / "r", sorted(name for name in whole if name.startswith("segment"))[:2]
    for changes in (
        {one: whole[two], two: whole[one]},
        {two: whole[one]},
        {one: other["segment-000001.mcap"]},
        {"manifest.json": other["manifest.json"]},
        {"watermark": other["watermark"]},
        {"segment-000099.mcap": whole[one]},
        {"segment-999999999.mcap": b""},
        {"segment-999999999.mcap": whole[one]},
    ):
        put_back(path, whole | changes)
        everything(path)
        assert StoreReader.open(path).verify(), f"{list(changes)} went unseen"


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop"])
@pytest.mark.parametrize("name", ["segment-000001.mcap", "manifest.json", "watermark"])
def test_names_that_are_no_files(tmp_path: Path, whole: dict[str, bytes], name: str, kind: str) -> None:
    """A directory, a pipe or a link to itself in the place of a file: an error or damage, and no waiting."""
    path = tmp_path / "r"
    put_back(path, whole)
    (path / name).unlink()
    if kind == "directory":
        (path / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to(name)
    everything(path)
    if not name.startswith("segment"):
        with pytest.raises(RecordingError):
            Store.resume(path)


@pytest.mark.parametrize("field", ["offset", "length", "number", "channel", "segment", "time_ns", "key"])
def test_an_index_that_lies(tmp_path: Path, whole: dict[str, bytes], field: str) -> None:
    """With every CRC right and one field of one entry wrong: rejected, or the read of that entry is; verify() sees it."""
    path, name = tmp_path / "r", "segment-000001.mcap"
    put_back(path, whole)
    with Source(path / name) as source:
        prologue, found = Prologue.read(source), read_index(source, source.size())
    assert prologue is not None and found is not None
    for value in (0, 1, 1 << 40, (1 << 63) - 1):
        entries, offset = found[0].copy(), found[1]
        size = entries.dtype[field].itemsize
        entries[field][2] = np.void(bytes(64)) if field == "key" else value & ((1 << (8 * size - 1)) - 1)
        if (
            np.array_equal(entries, found[0]) or int(entries["channel"][2]) > 1
        ):  # the truth, or more than statistics can hold
            continue
        lying = epilogue(prologue, ["rows", "ledger"], entries, offset)
        (path / name).write_bytes(whole[name][:offset] + lying)
        assert StoreReader.open(path).verify()
        everything(path)


def test_a_copy_elsewhere_is_the_same_recording(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Nothing in the files depends on where they lie."""
    put_back(tmp_path / "a", whole)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert everything(tmp_path / "b") == set(range(1, 25)) and not StoreReader.open(tmp_path / "b").verify()
