"""The runtime directory is private to its user, and any other directory is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actscope.errors import RingError
from actscope.runtime import directory
from actscope.runtime.directory import runtime_dir


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, not made yet."""
    path = tmp_path / "run"
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(path))
    return path


def test_a_runtime_directory_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path / "link"))
    with pytest.raises(RingError, match="no link"):
        runtime_dir()


def test_a_runtime_directory_that_others_may_enter_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o750)
    with pytest.raises(RingError, match="0700"):
        runtime_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_runtime_directory_of_someone_else_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    os.chown(runtime, 12345, -1)
    with pytest.raises(RingError, match="owner"):
        runtime_dir()


def test_a_file_in_place_of_the_runtime_directory_is_refused(runtime: Path) -> None:
    runtime.write_text("")
    with pytest.raises(RingError, match="directory"):
        runtime_dir()


def test_the_runtime_directory_follows_the_session_and_falls_back_to_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACTSCOPE_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_dir() == tmp_path / "actscope"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert directory._chosen_dir() == Path(f"/tmp/actscope-{os.geteuid()}")
