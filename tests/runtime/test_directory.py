"""The runtime directory is private to its user, and any other directory is refused."""

from __future__ import annotations

import os
import socket
import tempfile
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


def test_the_runtime_directory_follows_the_session_and_falls_back_to_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTSCOPE_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="acts-") as session:  # a short path: sockets lie in it
        monkeypatch.setenv("XDG_RUNTIME_DIR", session)
        assert runtime_dir() == Path(session) / "actscope"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(Path(session) / "absent"))
    shared = [Path(parent) / f"actscope-{os.geteuid()}" for parent in ("/tmp", "/dev/shm")]
    assert list(directory._usual_places()) == shared


def test_a_usual_directory_that_is_not_ours_is_passed_over_for_the_next_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another user's directory in /tmp, or the session of the user who ran `su`, keeps nobody from working."""
    places = [tmp_path / name for name in ("link", "file", "open", "ours")]
    places[0].symlink_to(tmp_path)
    places[1].write_text("")
    places[2].mkdir()
    places[2].chmod(0o777)
    monkeypatch.delenv("ACTSCOPE_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(directory, "_usual_places", lambda: iter(places))
    assert [runtime_dir() for _ in range(3)] == [places[3]] * 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        f"the runtime directory is {places[3]}, because {places[0]}: expected a directory and no link"
    )
    monkeypatch.setattr(directory, "_usual_places", lambda: iter(places[:3]))
    with pytest.raises(RingError, match="set ACTSCOPE_RUNTIME_DIR") as refused:
        runtime_dir()
    assert all(str(place) in str(refused.value) for place in places[:3])


def test_a_path_that_leaves_no_room_for_the_names_of_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found out when the model had been loaded."""
    longest = tmp_path / ("x" * (directory.MAX_PATH_BYTES - len(str(tmp_path)) - 1))
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(longest))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{runtime_dir()}/engine-{'0' * 16}.sock")
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", f"{longest}x")
    with pytest.raises(RingError, match=r"at most 78 leave room .* set ACTSCOPE_RUNTIME_DIR to a shorter path"):
        runtime_dir()
