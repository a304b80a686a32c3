"""Files of measurements: whole lines, rotation, and what happens when the disk does not take them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.waiting import until

from actscope.errors import MetricsError
from actscope.metrics.lines import IoLine
from actscope.metrics.reader import follow_rotation, read_measurements
from actscope.metrics.writer import LineWriter


def line(number: int) -> IoLine:
    return IoLine(timestamp=float(number), interval_s=5.0, latency_histogram=[])


def numbers(path: Path) -> list[float]:
    return [one.timestamp for one in read_measurements(path).io]


def test_lines_are_written_when_there_are_enough_and_at_the_end(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "io.jsonl", flush_every=3)
    for i in range(4):
        writer.put(line(i))
    until(lambda: writer.counts().written == 3, what="three lines")
    assert numbers(tmp_path / "io.jsonl") == [0, 1, 2]
    writer.close()
    assert numbers(tmp_path / "io.jsonl") == [0, 1, 2, 3]


def test_a_file_is_private_and_appended_to(tmp_path: Path) -> None:
    for i in range(2):
        writer = LineWriter(tmp_path / "io.jsonl", fsync=True)
        writer.put(line(i))
        writer.close()
        writer.close()
    assert numbers(tmp_path / "io.jsonl") == [0, 1]
    assert stat.S_IMODE((tmp_path / "io.jsonl").stat().st_mode) == 0o600


def test_half_a_line_of_a_killed_writer_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "io.jsonl"
    path.write_bytes(b'{"timestamp": 1.0, "interval_s": 5.0, "latency_histogram": []}\n{"timest')
    writer = LineWriter(path)
    writer.put(line(2))
    writer.close()
    found = read_measurements(path)
    assert [one.timestamp for one in found.io] == [1, 2]
    assert len(found.skipped) == 1
    assert "line 2" in found.skipped[0]


def test_a_file_that_has_grown_is_renamed_and_only_some_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "io.jsonl"
    writer = LineWriter(path, flush_every=1, rotate_bytes=300, keep=3)
    for i in range(40):
        writer.put(line(i))
    writer.close()
    files = follow_rotation(path)
    assert [one.name for one in files] == ["io.jsonl.3", "io.jsonl.2", "io.jsonl.1", "io.jsonl"]
    kept = [n for file in files for n in numbers(file)]
    assert kept == [float(n) for n in range(40)][-len(kept) :]
    assert all(file.stat().st_size <= 300 for file in files)


def test_a_disk_that_is_full_is_an_error_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    """The part of a line that was written is taken back."""
    writer = LineWriter(tmp_path / "io.jsonl", flush_every=1)
    full: Callable[[int, bytes], int] = lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actscope.metrics.writer.os.write", full)
        writer.put(line(0))
        until(lambda: writer._error is not None, what="the error")
        with pytest.raises(MetricsError, match=r"io.jsonl: cannot be written: No space left"):
            writer.put(line(1))
        with pytest.raises(MetricsError):
            writer.close()
    assert (tmp_path / "io.jsonl").read_bytes() == b""


@pytest.mark.parametrize("kind", ["directory", "link", "pipe", "missing"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = path / "io.jsonl"
    with pytest.raises(MetricsError, match="--output"):
        LineWriter(path)


def test_lines_that_find_the_queue_full_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actscope.metrics.writer._MOST_WAITING", 0)
    writer = LineWriter(tmp_path / "io.jsonl")
    writer.put(line(0))
    assert writer.counts().dropped == 1
    writer.close()
