"""Files of ours and of older tools are read by one reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from actscope.errors import MetricsError
from actscope.metrics.reader import read_measurements

OLD_IO = (
    '{"timestamp": 1700000000.5, "iso_timestamp": "2023-11-14T22:13:20", "interval_s": 5, "latency_histogram": [{"device_name": '
    '"nvme0n1", "total": 3, "buckets": [{"slot": 7, "count": 3, "bucket_low": 128, "bucket_high": 255}]}], '
    '"inflight": [{"device_name": "nvme0n1", "count": 1406}]}\n'
)
OLD_SYSTEM = (
    '{"timestamp": 1700000000.5, "iso_timestamp": "2023-11-14T22:13:20", "interval_s": 5.0, "off_cpu_ns": {"42": 1000}, '
    '"page_faults": {"42": 7}, "pressure": {"cpu": "some avg10=0.00", "io": null}}\n'
)


def test_files_of_older_tools_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(OLD_IO + "\n" + OLD_SYSTEM)
    found = read_measurements(path)
    (io,), (system,) = found.io, found.system
    assert (io.source, io.schema_version, io.latency_histogram[0].buckets[0].count) == ("unknown", 0, 3)
    assert io.inflight[0].count == 1406
    assert (system.off_cpu_ns, system.page_faults, system.source) == ({"42": 1000}, {"42": 7}, "unknown")
    assert not found.skipped


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b'{"latency_histogram": 3}\n',
        b"[" * 100_000 + b"\n",
        b'{"off_cpu_ns": {"1": "x"}}\n',
    ],
)
def test_what_is_no_file_of_measurements_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(MetricsError, match=r"x\.jsonl"):
        read_measurements(path)


def test_a_file_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match="no such file"):
        read_measurements(tmp_path / "none.jsonl")


def test_lines_that_cannot_be_read_are_named_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(OLD_IO + '{"a": 1}\n' + OLD_SYSTEM)
    found = read_measurements(path)
    assert (len(found.io), len(found.system)) == (1, 1)
    assert found.skipped == [f"{path}, line 2: expected latency_histogram or off_cpu_ns, found 'a'"]
