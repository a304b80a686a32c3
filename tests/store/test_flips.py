"""A bit that changes anywhere in a closed recording is found, and never reads back as data."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from support.store.parts import CYCLES, files, make, readable

from actscope.errors import RecordingDamaged, RecordingError
from actscope.store import StoreOptions, StoreReader

SMALL = StoreOptions(direct="no", preallocate=False, buffer_bytes=1 << 16, segment_bytes=4096)
DIRECT = StoreOptions(direct="auto", buffer_bytes=1 << 16, segment_bytes=1 << 20)


def look(path: Path) -> tuple[set[int], bool]:
    """Messages that read back, and whether the damage is seen; only our own errors may come out."""
    try:
        reader = StoreReader.open(path)
        good = readable(reader, 40)
        missing = len(reader.entries) != 3
        if missing:
            assert reader.damage, "a message is gone, and open() saw nothing"
        return good, bool(reader.verify())
    except (RecordingDamaged, RecordingError) as error:
        assert str(path) in str(error) or "manifest" in str(error)
        return set(), True


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("segment-000001.mcap", SMALL),
        ("segment-000001.mcap", DIRECT),
        ("manifest.json", SMALL),
        ("watermark", SMALL),
    ],
    ids=["segment", "direct segment", "manifest", "watermark"],
)
def test_every_flipped_bit_of_a_closed_recording_is_found(quick_path: Path, name: str, options: StoreOptions) -> None:
    """Each byte with one of its bits flipped (all eight with ACTSCOPE_TEST_CYCLES): verify() reports it, nothing
    reads back wrong."""
    path = make(quick_path / "r", 3, options, most=40)
    whole = files(path)[name]
    lost: Counter[int] = Counter()
    fd = os.open(path / name, os.O_RDWR)
    for at in range(len(whole)):
        for bit in range(8) if CYCLES else [at % 8]:
            os.pwrite(fd, bytes([whole[at] ^ 1 << bit]), at)
            good, seen = look(path)
            assert seen, f"bit {bit} of byte {at} of {name} changed, and verify() saw nothing"
            lost[3 - len(good)] += 1
        os.pwrite(fd, whole[at : at + 1], at)
    os.close(fd)
    assert look(path) == ({1, 2, 3}, False)
    assert set(lost) <= {0, 1, 3}, f"one bit takes one message or, in the manifest's place, all: {lost}"
    print(name, dict(lost))
