"""The model's processes and the device under a recording are found without being named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actscope.metrics.found import found_processes, recording_devices
from actscope.metrics.sources.devices import BlockDevices


@pytest.mark.parametrize("mode", ["ab", "rb"])
def test_the_writer_of_a_recording_is_found_by_its_open_file(tmp_path: Path, mode: str) -> None:
    """A process that has a segment open for writing is one; a reader of the same file is none."""
    segment = tmp_path / "run.acts" / "segment-000001.mcap"
    segment.parent.mkdir()
    segment.touch()
    code = f"import sys; file = open({str(segment)!r}, {mode!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = [one for one in found_processes() if one.pid == process.pid]
        process.kill()
    assert [one.recording for one in found] == ([segment.parent] if mode == "ab" else [])
    lines = recording_devices(found, BlockDevices())
    assert len(lines) < 2
    for line in lines:
        number = os.stat(tmp_path).st_dev
        link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        assert not link.exists() or line.device_name == link.resolve().name


def test_the_process_of_an_engine_is_found_by_its_card() -> None:
    from actscope.ring.discovery import EngineCard, publish_card
    from actscope.runtime.boot import boot_id
    from actscope.runtime.process import Process

    me = Process.current()
    ring = f"actscope-{os.geteuid()}-{'0' * 16}"
    card = EngineCard(
        id="0123456789abcdef", pid=me.pid, pid_start=me.start, kind="hf", model="m", revision="", device="cpu", dtype="float32",
        n_layers=1, d_model=1, max_context=1, special_ids=[], tokenizer="", ring=ring, endpoint="", started_ns=1,
        boot_id=boot_id(),
    )  # fmt: skip
    publish_card(card)
    assert [one.what for one in found_processes() if one.pid == me.pid] == ["engine 0123456789abcdef (m)"]
