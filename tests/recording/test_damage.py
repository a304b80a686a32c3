"""A recording with changed or missing bytes gives the rows that were recorded, or an error of ours; never other rows."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.recordings.made import frames_of, row_of, step_of, token_of

from actscope.errors import ActscopeError
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.store import StoreReader, recover

SITES = ("layers.0.resid_post", "layers.1.resid_post")
FLIPS = int(os.environ.get("ACTSCOPE_TEST_FLIPS", "400"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "r.acts"
    with Recorder.create(path, RecordingSpec(SITES, "zstd"), PipelineOptions(block_bytes=64)) as recorder:
        for number in range(1, 6):
            step = step_of(number, [("a", 2 * (number - 1), 2)])
            recorder.write(step, frames_of(step, SITES))
            recorder.flush()
    return path


def check_what_can_be_read(path: Path) -> int:
    """Read all that is there; every row that is delivered must be right. How many were."""
    try:
        found = Recording.open(path)
        requests = found.requests
    except ActscopeError:
        return 0
    assert requests in ([], ["a"])
    delivered = 0
    for site in SITES if requests else ():
        for position in range(10):
            try:
                rows = found.rows(site, "a", position)
            except ActscopeError:
                continue
            assert rows.labels["token_id"].tolist() == [token_of("a", position)]
            np.testing.assert_array_equal(rows.values[0], row_of("a", position, site))
            delivered += 1
    return delivered


def test_a_flipped_bit_never_gives_a_wrong_row_and_is_always_noticed(whole: Path, tmp_path: Path) -> None:
    assert check_what_can_be_read(whole) == 20
    chance = random.Random(3)
    (segment,) = whole.glob("*.mcap")
    rows = 0
    for _ in range(FLIPS):
        copy = tmp_path / "copy.acts"
        shutil.copytree(whole, copy)
        content = bytearray(segment.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (copy / segment.name).write_bytes(content)
        rows += check_what_can_be_read(copy)
        assert StoreReader.open(copy).verify() != []
        shutil.rmtree(copy)
    assert 10 * FLIPS < rows < 20 * FLIPS  # most rows were still delivered, and not all


def test_a_cut_segment_never_gives_a_wrong_row(whole: Path, tmp_path: Path) -> None:
    (segment,) = whole.glob("*.mcap")
    size = segment.stat().st_size
    chance = random.Random(4)
    rows, recovered = [], 0
    for length in sorted(chance.sample(range(size), FLIPS // 4)):
        copy = tmp_path / "copy.acts"
        shutil.copytree(whole, copy)
        os.truncate(copy / segment.name, length)
        delivered = check_what_can_be_read(copy)
        try:
            recover(copy)  # only the summary at the end is missing: it is made again
            assert delivered == 20
            recovered += 1
        except ActscopeError:
            pass  # acknowledged bytes are missing: nothing is thrown away unasked
        assert check_what_can_be_read(copy) == delivered
        rows.append(delivered)
        shutil.rmtree(copy)
    assert 0 < recovered < len(rows) and len(set(rows)) > 2  # there were cuts of every kind
