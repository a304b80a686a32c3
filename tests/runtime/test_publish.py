"""A published file appears whole under its name, or not at all."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actscope.runtime.publish import publish_directory, publish_file, publish_files, write_all


def test_a_published_file_replaces_the_one_before_and_has_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    publish_file(path, b"first", mode=0o600)
    before = path.open("rb")
    publish_file(path, b"second", mode=0o600)
    with before:
        assert before.read() == b"first"  # a reader that had opened it keeps what it had
    assert path.read_bytes() == b"second" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_is_synced_before_it_has_its_name_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            return real(*arguments, **more)

        return call

    for name in ("pwrite", "fsync", "rename"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    publish_file(tmp_path / "a", b"1")
    assert calls == ["pwrite", "fsync", "rename", "fsync"]
    calls.clear()
    publish_file(tmp_path / "a", b"1", durable=False)
    assert calls == ["pwrite", "rename"]


@pytest.mark.parametrize("at", ["pwrite", "fsync", "rename"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "a"
    publish_file(path, b"old")

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, at, failing)
    with pytest.raises(OSError, match="no space left"):
        publish_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_short_write_is_continued_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    publish_file(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with (tmp_path / "a").open("wb") as file, pytest.raises(OSError, match="wrote nothing"):
        write_all(file.fileno(), b"1", 0)


def test_a_published_directory_is_private_and_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with publish_directory(path) as empty:
        assert empty is not None and not path.exists()
        (empty / "weights").write_bytes(b"1")
        (empty / "weights").chmod(0o644)
    assert (path / "weights").read_bytes() == b"1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700 and stat.S_IMODE((path / "weights").stat().st_mode) == 0o600
    with publish_directory(path) as again:
        assert again is None


def test_a_directory_that_fails_leaves_nothing_and_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "model"
    (tmp_path / ".model.0123456789abcdef.tmp").mkdir()
    (tmp_path / ".other.0123456789abcdef.tmp").mkdir()
    with pytest.raises(KeyboardInterrupt), publish_directory(path) as empty:
        assert empty is not None
        (empty / "half").write_bytes(b"1")
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model.lock", ".other.0123456789abcdef.tmp"]


def test_a_link_in_a_directory_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(OSError), publish_directory(tmp_path / "model") as empty:
        assert empty is not None
        (empty / "link").symlink_to("/etc/passwd")
    assert not (tmp_path / "model").exists()


def test_publishers_of_one_directory_run_one_after_the_other(tmp_path: Path) -> None:
    """The second waits for the first and finds its directory."""
    path, inside, ended = tmp_path / "model", threading.Event(), threading.Event()
    found: list[Path | None] = []

    def second() -> None:
        inside.wait()
        with publish_directory(path) as empty:
            found.append(empty)
            assert ended.is_set()

    thread = threading.Thread(target=second)
    thread.start()
    with publish_directory(path) as empty:
        inside.set()
        assert empty is not None
        (empty / "weights").write_bytes(b"1")
        ended.set()
    thread.join()
    assert found == [None]


def test_of_several_files_none_appears_when_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(OSError):
        publish_files({tmp_path / "a": b"1", tmp_path / "absent" / "b": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"before"
    publish_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"1", b"2")
