"""A recording knows when its blocks were written, what waited then, and when rows were dropped."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.recordings.made import frames_of, step_of

import actscope
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.block_writer import BlockWriter
from actscope.recording.writing.recorder import Recorder

SITES = ("layers.0.resid_post", "layers.1.resid_post")
DATA = Path(__file__).parents[1] / "data"


def test_every_block_has_its_time_and_the_sizes_add_up(tmp_path: Path) -> None:
    """Over two sessions, each with a clock of its own."""
    began, bytes_stored, bytes_source = time.time_ns(), 0, 0
    for resume in (False, True):
        recorder = Recorder.create(tmp_path / "run.acts", RecordingSpec(SITES), resume=resume)
        for number in range(1, 6):
            step = step_of(number, [(f"r{resume}", 4 * number, 4)])
            recorder.write(step, frames_of(step, SITES))
            recorder.flush()
        recorder.close()
        bytes_stored += recorder.stats().stored_bytes
        bytes_source += recorder.stats().source_bytes
    history = actscope.open(tmp_path / "run.acts").write_history()
    assert (history.stored_bytes.sum(), history.source_bytes.sum()) == (bytes_stored, bytes_source)
    assert (np.diff(history.times_ns) >= -50_000_000).all(), "workers may swap neighbours"
    assert began - 10**7 <= history.times_ns.min() <= history.times_ns.max() <= time.time_ns() + 10**7
    assert (history.queued_bytes > 0).all(), "the block itself is held while it is written"
    assert len(history.boot_ids) == 2 and history.untimed_blocks == 0 and not len(history.drop_times_ns)


def test_drops_have_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the worker is held up, the queue fills and further rows are dropped: as many as the history says."""
    goes_on = threading.Event()
    write = BlockWriter.write
    monkeypatch.setattr(BlockWriter, "write", lambda *given: (goes_on.wait(30), write(*given))[1])
    options = PipelineOptions(policy="drop", memory_bytes=16 << 20, workers=1, block_bytes=1 << 16)
    recorder = Recorder.create(tmp_path / "run.acts", RecordingSpec(SITES[:1], codec="none"), options)
    began = time.time_ns()
    for number in range(1, 8):
        step = step_of(number, [("r", 1000 * number, 1000)])
        recorder.write(step, frames_of(step, SITES[:1], 512))
    goes_on.set()
    recorder.close()
    history = actscope.open(tmp_path / "run.acts").write_history()
    assert history.dropped_rows.sum() == recorder.stats().dropped_rows > 0
    assert (history.drop_times_ns >= began - 10**7).all() and (history.drop_times_ns <= time.time_ns() + 10**7).all()
    assert history.queued_bytes.max() > 2 << 20


def test_a_recording_of_the_first_release_has_no_times(tmp_path: Path) -> None:
    history = actscope.open(shutil.copytree(DATA / "recording-0.1", tmp_path / "run.acts")).write_history()
    assert (len(history.times_ns), len(history.boot_ids)) == (0, 1)
    assert history.untimed_blocks > 0
