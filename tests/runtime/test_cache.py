"""The cache is where the environment says; where that cannot be written to, it is a private directory for temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from actscope.errors import SettingsError
from actscope.runtime import cache
from actscope.runtime.cache import cache_place, temporary_root
from actscope.runtime.writable import can_create, check_can_create


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files of the test's own."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    monkeypatch.setattr(cache, "_told", set())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return path


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_cache_is_in_the_home_directory_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_place("probes", "m") == tmp_path / "home/.cache/actscope/probes/m"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_place("gguf") == tmp_path / "xdg/actscope/gguf"


@pytest.mark.parametrize("home", ["none", "relative", "below a file", "empty"])
def test_without_a_home_directory_the_cache_is_a_private_directory_and_that_is_said_once(
    home: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """HOME unset for a user id without an entry in /etc/passwd was a traceback."""
    (tmp_path / "file").write_text("")
    homes = {"relative": Path("home"), "below a file": tmp_path / "file" / "home", "empty": Path()}
    monkeypatch.setattr(Path, "home", no_home if home == "none" else lambda: homes[home])
    place = temporary / f"actscope-cache-{os.geteuid()}"
    assert [cache_place("probes"), cache_place("gguf")] == [place / "probes", place / "gguf"]
    assert place.stat().st_mode & 0o777 == 0o700
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(place) in said and "set XDG_CACHE_HOME" in said


def test_what_is_in_a_cache_that_can_only_be_read_is_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose image has the probes and whose files are read-only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "actscope/probes").mkdir(parents=True)
    monkeypatch.setattr(cache, "can_create", lambda path: False)
    assert cache_place("probes") == tmp_path / "actscope/probes"
    assert cache_place("gguf").is_relative_to(temporary)
    assert cache_place("probes", reuse=False).is_relative_to(temporary)


def test_another_users_directory_in_place_of_the_substitute_is_refused_and_names_the_variable(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    (temporary / f"actscope-cache-{os.geteuid()}").symlink_to(temporary)
    with pytest.raises(SettingsError, match=r"there is no home directory, .* set XDG_CACHE_HOME"):
        cache_place()


def test_no_directory_for_temporary_files_is_an_error_that_names_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(SettingsError, match="set TMPDIR"):
        temporary_root()
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(SettingsError, match="set XDG_CACHE_HOME"):
        cache_place()


def test_whether_a_directory_can_be_created_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert can_create(tmp_path) and can_create(tmp_path / "a/b")
    assert not can_create(tmp_path / "file") and not can_create(tmp_path / "file/b")
    with pytest.raises(SettingsError, match=f"--out {tmp_path}/file/b: {tmp_path}/file is no directory"):
        check_can_create(tmp_path / "file/b", "--out", SettingsError)
    assert not (tmp_path / "a").exists()
