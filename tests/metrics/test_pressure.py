"""Pressure: the kernel's files as they are, and what to do where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from actscope.metrics.sources.pressure import cgroup_pressure, machine_pressure, parse_pressure

TEXT = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


def test_all_numbers_of_a_file_are_kept() -> None:
    found = parse_pressure(TEXT)
    assert (found["some"].avg10, found["some"].avg60, found["some"].total, found["full"].total) == (1.5, 0.25, 1234, 7)


def test_the_machine_s_pressure_is_that_of_its_files() -> None:
    """Total only grows, so it lies between two readings of the file."""
    path = Path("/proc/pressure/cpu")
    try:
        before = parse_pressure(path.read_text())["some"].total
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}")
    found, lacks = machine_pressure()
    assert lacks == ""
    assert before <= found["cpu"]["some"].total <= parse_pressure(path.read_text())["some"].total


def test_a_kernel_without_pressure_is_named_with_what_switches_it_on(tmp_path: Path) -> None:
    found, lacks = machine_pressure(tmp_path / "pressure")
    assert found == {}
    assert "psi=1" in lacks


def test_what_can_be_read_is_given_beside_what_cannot(tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text(TEXT)
    (tmp_path / "io").write_text("nonsense\n")
    found, lacks = machine_pressure(tmp_path)
    assert set(found) == {"cpu"}
    assert lacks


def test_a_control_group_of_version_2_has_its_own_pressure(tmp_path: Path) -> None:
    for pid, group in ((1, "0::/model\n"), (2, "4:memory:/x\n")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/cgroup").write_text(group)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(f"1 0 0:1 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "unified/model").mkdir(parents=True)
    (tmp_path / "unified/model/io.pressure").write_text(TEXT)
    path, found = cgroup_pressure(1, tmp_path / "proc")
    assert (path, found["io"]["some"].total) == ("/model", 1234)
    assert cgroup_pressure(2, tmp_path / "proc") == ("", {})
    assert cgroup_pressure(3, tmp_path / "proc") == ("", {})
