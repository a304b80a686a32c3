"""A recording cut at any byte: what was acknowledged and is gone is reported, what is there reads back, and recovery
never takes more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.store.parts import CYCLES, files, make, put, put_back, readable

from actscope.errors import RecordingDamaged, RecordingError
from actscope.store import Store, StoreOptions, StoreReader, recover
from actscope.store.format import watermark

MOST = 40
COUNT = 3
OPTIONS = StoreOptions(direct="no", preallocate=False, buffer_bytes=1 << 16, commit_seconds=60)
STRIDE = 1 if CYCLES else 97  # of cut points that are also recovered, salvaged and resumed


def survivors(path: Path) -> set[int]:
    """Messages that read back after a cut; empty when no copy of the manifest is left."""
    try:
        return readable(StoreReader.open(path), MOST)
    except (RecordingDamaged, RecordingError):
        return set()


def salvage_and_resume(path: Path, before: set[int]) -> None:
    """Recovery keeps every message that could be read; run twice it changes nothing; the recording can be gone on with."""
    whole = files(path)
    try:
        recover(path)
    except RecordingDamaged:
        assert files(path) == whole, "recover() refused, and changed something"
        recover(path, salvage=True)
    assert survivors(path) == before
    at_rest = files(path)
    assert not recover(path).changed and files(path) == at_rest
    assert all(one.kind == "lost" for one in StoreReader.open(path).verify())
    with Store.resume(path, options=OPTIONS) as store:
        put(store, store.written + 1, MOST)
    reader = StoreReader.open(path)
    assert readable(reader, MOST) == before | {COUNT + 1}
    assert all(one.kind == "lost" for one in reader.verify())


@pytest.mark.parametrize("name", ["segment-000001.mcap", "manifest.json", "watermark"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "crashed"])
def test_a_file_cut_at_every_byte(quick_path: Path, name: str, closed: bool) -> None:
    """All three messages were acknowledged: a cut that takes one is reported as acknowledged, any other cut takes none."""
    path = make(quick_path / "r", COUNT, OPTIONS, closed=closed, most=MOST)
    whole = files(path)
    assert not StoreReader.open(path).verify()
    for length in range(len(whole[name])):
        put_back(path, whole)
        with (path / name).open("r+b") as file:
            file.truncate(length)
        reader = StoreReader.open(path)  # of the manifest one copy is always left
        good, damage = readable(reader, MOST), reader.verify()
        assert damage, f"{name} cut to {length} bytes, and verify() saw nothing"
        if len(good) < COUNT:
            assert any(one.acknowledged for one in damage)
            assert any(one.acknowledged for one in reader.damage), "seen by verify(), but not by open()"
        if length % STRIDE == 0:
            salvage_and_resume(path, good)


def test_a_missing_file_is_reported_and_can_be_salvaged(tmp_path: Path) -> None:
    """Each file removed in turn: a lost segment takes its messages, manifest and watermark take none."""
    options = StoreOptions(direct="no", preallocate=False, segment_bytes=4096, buffer_bytes=1 << 16)
    path = make(tmp_path / "r", 30, options)
    whole = files(path)
    assert sum(name.startswith("segment") for name in whole) >= 3
    for name in whole:
        put_back(path, whole)
        (path / name).unlink()
        reader = StoreReader.open(path)
        good = readable(reader)
        assert any(one.acknowledged for one in reader.damage)
        assert (len(good) < 30) == name.startswith("segment")
        with pytest.raises(RecordingDamaged):
            recover(path)
        report = recover(path, salvage=True)
        assert report.messages == len(good) and readable(StoreReader.open(path)) == good
        lost = {number for first, last in report.lost for number in range(first, last + 1)}
        assert lost == set(range(1, 31)) - good
        assert {one.kind for one in StoreReader.open(path).verify()} == ({"lost"} if lost else set())
        assert not recover(path).changed


def test_what_lies_above_the_watermark_is_cut_and_kept_aside(tmp_path: Path) -> None:
    """Garbage after the last message is a torn tail: recovery takes it off without being asked twice, and keeps the bytes."""
    path = make(tmp_path / "r", COUNT, OPTIONS, closed=False)
    with (path / "segment-000001.mcap").open("ab") as file:
        file.write(b"\x05half a message")
    reader = StoreReader.open(path)
    assert [(one.kind, one.acknowledged) for one in reader.damage] == [("torn tail", False)]
    report = recover(path)
    assert report.cut_bytes == 15 and report.messages == COUNT and not report.lost
    assert [one.read_bytes() for one in report.kept] == [b"\x05half a message"]
    assert not StoreReader.open(path).verify()


def test_whole_messages_above_the_watermark_are_kept(tmp_path: Path) -> None:
    """A crash between the write of a message and the watermark loses nothing: the message is whole, so it stays."""
    path = tmp_path / "r"
    store = Store.create(path, manifest={}, channels=["rows", "ledger"], options=OPTIONS)
    put(store, 1)
    store.wait_written(1)
    mark = (path / "watermark").read_bytes()
    put(store, 2)
    store.wait_written(2)
    crashed = Path(shutil.copytree(path, tmp_path / "crashed"))
    store.close()
    (crashed / "watermark").write_bytes(mark)
    reader = StoreReader.open(crashed)
    assert reader.watermark and reader.watermark.written.number == 1
    assert readable(reader) == {1, 2} and not reader.damage
    recover(crashed)
    assert readable(StoreReader.open(crashed)) == {1, 2}


def test_rot_in_the_middle_is_not_a_torn_tail(tmp_path: Path) -> None:
    """A bad message below the watermark stops recovery; salvage closes around it and keeps the old segment byte for byte."""
    path = make(tmp_path / "r", 9, OPTIONS, closed=False)
    reader = StoreReader.open(path)
    entry = reader.entries[4]
    segment = path / "segment-000001.mcap"
    data = bytearray(segment.read_bytes())
    data[int(entry["offset"]) + 140] ^= 4
    data[int(reader.entries[6]["offset"]) + 50] ^= 4  # the head of another
    segment.write_bytes(data)
    whole = files(path)
    with pytest.raises(RecordingDamaged, match="5"):
        recover(path)
    assert files(path) == whole
    report = recover(path, salvage=True)
    assert report.lost == [(5, 5), (7, 7)] and report.messages == 7
    assert (path / "segment-000001.mcap.damaged").read_bytes() == bytes(data)
    assert readable(StoreReader.open(path)) == {1, 2, 3, 4, 6, 8, 9}
    with Store.resume(path, options=OPTIONS) as store:
        put(store, 10)
    found = StoreReader.open(path).verify()
    assert [one.kind for one in found] == ["lost", "lost"] and all(one.acknowledged for one in found)


def test_only_what_was_durable_must_be_there_after_the_machine_was_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that were written and not durable may be gone then: recovery does not refuse; in the same run of the
    machine it does."""
    store = Store.create(tmp_path / "r", manifest={}, channels=["rows", "ledger"], options=OPTIONS)
    put(store, 1)
    store.sync()
    durable = (tmp_path / "r" / "segment-000001.mcap").stat().st_size
    put(store, 2)
    store.wait_written(2)
    path = Path(shutil.copytree(tmp_path / "r", tmp_path / "crashed"))
    store.close()
    with (path / "segment-000001.mcap").open("r+b") as file:
        file.truncate(durable)
    with pytest.raises(RecordingDamaged, match="missing"):
        recover(path)
    monkeypatch.setattr(watermark, "boot_id", lambda: b"another run" + bytes(5))
    assert not StoreReader.open(path).damage
    assert recover(path).messages == 1 and not StoreReader.open(path).verify()


def test_a_segment_whose_beginning_is_bad_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    """A regression: its messages once counted as missing from the segment before, and salvage gave up whole ones."""
    options = StoreOptions(direct="no", preallocate=False, segment_bytes=4096, buffer_bytes=1 << 16)
    path = make(tmp_path / "r", 30, options)
    with (path / "segment-000002.mcap").open("r+b") as file:
        file.seek(20)
        file.write(b"?")
    assert {one.segment for one in StoreReader.open(path).verify()} == {2}
    report = recover(path, salvage=True)
    assert report.lost == [] and [one.name for one in report.kept] == ["segment-000002.mcap.damaged"]
    assert readable(StoreReader.open(path)) == set(range(1, 31)) and not StoreReader.open(path).verify()
