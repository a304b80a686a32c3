"""Storage: whole objects, and put-if-absent that holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actscope.errors import HarvestError, SettingsError
from actscope.harvest.driver import check_put_new
from actscope.harvest.storage import open_storage
from actscope.harvest.storage.local import LocalStorage


def test_an_object_is_put_once_and_the_same_bytes_again_are_no_conflict(place: str) -> None:
    """put_new keeps the first bytes, and says whether what lies there is ours."""
    storage = open_storage(place)
    assert storage.put_new("receipts/000001.json", b"one")
    assert storage.put_new("receipts/000001.json", memoryview(b"one"))
    assert not storage.put_new("receipts/000001.json", b"two")
    assert storage.get("receipts/000001.json") == b"one"


def test_of_several_who_put_at_once_one_wins(place: str) -> None:
    """Four threads put different bytes under twenty names: each name has one winner, and holds its bytes."""
    storage = open_storage(place)
    won: list[tuple[int, int]] = []

    def put(mine: int) -> None:
        won.extend((i, mine) for i in range(20) if storage.put_new(f"claims/{i:06d}.1", b"%d" % mine))

    threads = [threading.Thread(target=put, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for i, _ in won) == list(range(20))
    assert all(storage.get(f"claims/{i:06d}.1") == b"%d" % mine for i, mine in won)


def test_objects_are_listed_replaced_read_in_pieces_and_removed(place: str) -> None:
    """Listing, replacing, reading in pieces and removing work on a directory and on S3."""
    storage = open_storage(place)
    assert storage.names("owners") == [] and storage.get("owners/a") is None and storage.size("owners/a") is None
    big = os.urandom(20 << 20)
    storage.put("shards/b", bytearray(big))
    storage.put("shards/a", b"old")
    storage.put("shards/a", b"new")
    assert storage.names("shards") == ["shards/a", "shards/b"]
    assert (storage.get("shards/a"), storage.size("shards/b")) == (b"new", len(big))
    assert b"".join(bytes(chunk) for chunk in storage.chunks("shards/b")) == big
    storage.delete(["shards/a", "shards/none"])
    assert storage.names("shards") == ["shards/b"]
    with pytest.raises(HarvestError, match="shards/a"):
        list(storage.chunks("shards/a"))


def test_a_place_keeps_the_promise_that_everything_stands_on(place: str) -> None:
    """The check at the start of a harvest passes, and leaves nothing behind."""
    storage = open_storage(place)
    check_put_new(storage)
    assert storage.names("owners") == []


def test_a_place_that_overwrites_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that ignores If-None-Match is found out before anything is harvested."""
    storage = LocalStorage(tmp_path)

    def overwriting(name: str, data: bytes) -> bool:
        storage.put(name, data)
        return True

    monkeypatch.setattr(storage, "put_new", overwriting)
    with pytest.raises(HarvestError, match="If-None-Match"):
        check_put_new(storage)


def test_files_are_durable_before_they_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it is linked, the folder after; also where the file system knows no nameless files."""
    calls: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            return real(*arguments, **more)

        return call

    for name in ("fsync", "link", "rename"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    LocalStorage(tmp_path).put_new("a", b"1")
    assert calls == ["fsync", "link", "fsync"]
    monkeypatch.setattr(os, "O_TMPFILE", 1 << 30)  # refused as an unknown flag is on NFS
    real_open = os.open

    def refusing(path: object, flags: int, *more: int, **given: int) -> int:
        if flags & (1 << 30):
            raise OSError(95, "not supported")
        return real_open(path, flags, *more, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    calls.clear()
    assert LocalStorage(tmp_path).put_new("b", b"2") and not LocalStorage(tmp_path).put_new("b", b"3")
    assert calls[:3] == ["fsync", "link", "fsync"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where the directory should be is an error that names it."""
    (tmp_path / "rows").write_text("a file")
    with pytest.raises(HarvestError, match=r"rows/plan\.json: writing failed"):
        open_storage(str(tmp_path / "rows")).put_new("plan.json", b"")


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"s3://bucket/prefix.*gs://"):
        open_storage("ftp://host/rows")


def test_plain_http_is_for_this_machine_only(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An http:// endpoint elsewhere is refused before any credentials are sent; on loopback it works without asking."""
    open_storage(f"{bucket}/a").put("x", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.1:9")
    from actscope.harvest.storage.objects import ObjectStorage

    with pytest.raises(HarvestError, match="x: writing failed"):
        ObjectStorage(f"{bucket}/a", patience_s=1).put("x", b"")
