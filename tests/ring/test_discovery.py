"""Engines and readers find each other, trust nothing they find, and clean up only what is theirs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ring.conftest import CHILD, Child, MakeRing
from support.ring.reading import said
from support.waiting import can_unshare, until

from actscope.errors import RingError
from actscope.ring import discovery
from actscope.ring.host import RingReader, RingSpec, RingWriter
from actscope.ring.layout import HEADER_BYTES, Word
from actscope.ring.segment import SHM_DIR, is_locked, read_header, segment_path
from actscope.runtime.boot import boot_id
from actscope.runtime.directory import runtime_dir
from actscope.runtime.private_files import publish_private
from actscope.runtime.process import Process, process_start


def a_ring_name() -> str:
    return f"actscope-{os.geteuid()}-{secrets.token_hex(8)}"


def a_card(**changed: object) -> discovery.EngineCard:
    card = discovery.EngineCard(
        id=secrets.token_hex(8),
        pid=os.getpid(),
        pid_start=process_start(os.getpid()) or 0,
        kind="hf",
        model="m",
        revision="main",
        device="cpu",
        dtype="float32",
        n_layers=2,
        d_model=64,
        max_context=2048,
        special_ids=[0, 1],
        tokenizer="/models/m",
        ring=a_ring_name(),
        endpoint="unix:/run/e.sock",
        started_ns=1,
        boot_id=boot_id(),
    )
    return msgspec.structs.replace(card, **changed)


def test_a_card_is_private_and_is_read_back_as_it_was(runtime: Path) -> None:
    card = a_card()
    path = discovery.publish_card(card)
    assert path == runtime / f"engine-{card.id}.json" and path.stat().st_mode & 0o777 == 0o600
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert discovery.read_cards() == [card] and [p.name for p in runtime.iterdir()] == [path.name]


def test_cards_come_newest_first_and_only_of_processes_that_live(runtime: Path) -> None:
    old, new = a_card(started_ns=1), a_card(started_ns=2)
    dead = [a_card(pid_start=1), a_card(boot_id="another boot"), a_card(pid=2**22 + 1)]
    for card in (old, new, *dead):
        discovery.publish_card(card)
    assert discovery.read_cards() == [new, old]


BAD_CARDS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "not json": lambda c: b"{",
    "not utf-8": lambda c: b'{"id": "\xff"}',
    "field missing": lambda c: json.dumps({k: v for k, v in c.items() if k != "ring"}).encode(),
    "wrong type": lambda c: json.dumps({**c, "pid": "1"}).encode(),
    "negative": lambda c: json.dumps({**c, "n_layers": -1}).encode(),
    "huge number": lambda c: json.dumps({**c, "pid_start": 2**70}).encode(),
    "other id": lambda c: json.dumps({**c, "id": "0" * 16}).encode(),
    "ring elsewhere": lambda c: json.dumps({**c, "ring": "../../etc/passwd"}).encode(),
    "ring of another user": lambda c: json.dumps({**c, "ring": "actscope-12345-" + "0" * 16}).encode(),
    "ring with a newline": lambda c: json.dumps({**c, "ring": c["ring"] + "\n"}).encode(),
    "long text": lambda c: json.dumps({**c, "model": "m" * 5000}).encode(),
    "too large": lambda c: json.dumps({**c, "extra": "x" * discovery.MAX_CARD_BYTES}).encode(),
    "nested deep": lambda c: b"[" * 30000,
}


@pytest.mark.parametrize("bad", BAD_CARDS)
def test_a_malformed_card_is_left_out_and_does_not_hide_the_others(
    runtime: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, card = a_card(), a_card()
    discovery.publish_card(good)
    path = runtime / f"engine-{card.id}.json"
    publish_private(path, BAD_CARDS[bad](msgspec.to_builtins(card)))
    assert discovery.read_cards() == [good] and str(card.id) in caplog.text
    with pytest.raises(RingError):
        discovery.read_card(path)


def test_a_card_that_is_a_link_or_open_to_others_is_left_out(runtime: Path, tmp_path: Path) -> None:
    card = a_card()
    path = discovery.publish_card(card)
    path.chmod(0o644)
    assert discovery.read_cards() == []
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert discovery.read_cards() == []


def test_a_card_that_no_reader_would_accept_is_not_published(runtime: Path) -> None:
    for bad in ({"ring": "/dev/sda"}, {"id": "../x"}, {"d_model": -1}):
        with pytest.raises(RingError):
            discovery.publish_card(a_card(**bad))


def test_a_table_is_read_back_whole_and_only_by_a_proper_name(runtime: Path) -> None:
    card = a_card()
    discovery.publish_table(card.id, b'{"probes": []}', 3)
    assert discovery.read_table(card.id, 3) == b'{"probes": []}'
    for wrong in ((card.id, 4), (card.id, -1), ("../../etc/passwd", 1), (card.id + "\n", 3)):
        with pytest.raises(RingError):
            discovery.read_table(*wrong)


def test_withdrawing_removes_all_of_one_engine_and_nothing_else(runtime: Path, tmp_path: Path) -> None:
    other, card = a_card(), a_card(endpoint=f"unix:{tmp_path}/precious", tokenizer=str(tmp_path / "precious"))
    (tmp_path / "precious").write_text("keep")
    for one in (card, other):
        discovery.publish_card(one)
        discovery.publish_table(one.id, b"{}", 0)
        (runtime / f"engine-{one.id}.sock").touch()
        segment_path(one.ring).touch(0o600)
    discovery.withdraw_card(card)
    discovery.withdraw_card(card)
    assert {p.name for p in runtime.iterdir()} == {
        f"engine-{other.id}.json",
        f"engine-{other.id}.sock",
        f"probes-{other.id}-0.json",
    }
    assert (tmp_path / "precious").read_text() == "keep"
    assert not segment_path(card.ring).exists() and segment_path(other.ring).exists()
    segment_path(other.ring).unlink()


def test_sweep_removes_what_a_killed_engine_left_and_keeps_what_lives(
    runtime: Path, child: Child, make_ring: MakeRing
) -> None:
    mine, _ = make_ring()
    alive = a_card(ring=mine.name)
    engine = child("write_and_hold", 64, 16, 3)
    ring = said(engine)["name"]
    killed = a_card(pid=engine.pid, pid_start=process_start(engine.pid), ring=ring)
    for card in (alive, killed):
        discovery.publish_card(card)
        discovery.publish_table(card.id, b"{}", 7)
        (runtime / f"engine-{card.id}.sock").touch()
    stranger = runtime / "notes.txt"
    stranger.touch()
    assert len(discovery.read_cards()) == 2
    discovery.sweep()
    assert segment_path(ring).exists()
    os.kill(engine.pid, signal.SIGKILL)
    engine.wait()
    assert discovery.read_cards() == [alive]
    assert (
        discovery.sweep() >= 3
    )  # card, table, socket; and the segment, unless another engine of this machine is quicker
    assert not segment_path(ring).exists() and segment_path(mine.name).exists() and stranger.exists()
    assert len(list(runtime.iterdir())) == 4
    RingReader.attach(mine.name).close()


def test_sweep_removes_a_segment_without_a_card_whose_writer_was_killed(runtime: Path, child: Child) -> None:
    engine = child("write_and_hold", 64, 16, 3)
    ring = said(engine)["name"]
    os.kill(engine.pid, signal.SIGKILL)  # a zombie counts as dead: nobody has waited for it yet
    reader = RingReader.attach(ring, from_oldest=True)
    while reader.writer_alive():
        reader.wait(0.05)
        reader.read()
    discovery.sweep()
    assert not segment_path(ring).exists()
    reader.close()


def test_sweep_leaves_young_orphans_and_removes_old_ones(runtime: Path) -> None:
    runtime_dir()
    orphan = runtime / f"probes-{secrets.token_hex(8)}-0.json"
    temporary = runtime / f".engine-{secrets.token_hex(8)}.json.{secrets.token_hex(8)}.tmp"
    empty = SHM_DIR / a_ring_name()
    for path in (orphan, temporary, empty):
        path.touch(0o600)
    discovery.sweep()
    assert orphan.exists() and temporary.exists() and empty.exists()
    for path in (orphan, temporary, empty):
        os.utime(path, (1, 1))
    discovery.sweep()
    assert not orphan.exists() and not temporary.exists() and not empty.exists()


def test_sweep_leaves_a_ring_of_another_container_alone(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid belongs to another namespace, so here it may be unused or another process."""
    monkeypatch.setattr("actscope.ring.segment.Process.current", lambda: Process(2**22 + 1, 1, 42))
    writer = RingWriter.create(RingSpec(8, 4, 4, 4))
    card = a_card(pid=2**22 + 1, ring=writer.name)
    discovery.publish_card(card)
    discovery.sweep()
    assert segment_path(writer.name).exists() and discovery.read_cards() == [card]
    reader = RingReader.attach(writer.name)
    assert reader.writer_alive()  # its heartbeat is fresh
    writer.close()
    reader.close()


@pytest.mark.skipif(not can_unshare("--pid"), reason="a pid namespace of one's own needs root")
def test_sweep_removes_the_ring_of_a_dead_container_and_leaves_that_of_a_living_one(runtime: Path) -> None:
    """In another pid namespace nobody can look at the process; the lock on the file says whether it lives."""
    engine = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, str(CHILD), "write_and_hold", "64", "16", "3"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ring = said(engine)["name"]
        assert not Process(read_header(ring).pid, 0, read_header(ring).pid_namespace).visible
        card = a_card(pid=2**22 + 1, ring=ring)
        discovery.publish_card(card)
        os.truncate(discovery.publish_table(card.id, b"{}", 1), 0)
        silence(ring)
        discovery.sweep()
        assert discovery.read_cards() == [card] and segment_path(ring).exists()
    finally:
        engine.kill()
        engine.communicate()
    until(lambda: not is_locked(ring), 20, what="the end of the other container's process")
    assert discovery.read_cards() == []
    discovery.sweep()
    assert not segment_path(ring).exists() and list(runtime.iterdir()) == []


def test_sweep_leaves_the_ring_of_a_living_engine_of_another_version(runtime: Path) -> None:
    """A reader refuses such a ring, but its owner is known: the engine that made it still writes there."""
    writer = RingWriter.create(RingSpec(8, 4, 4, 4))
    with segment_path(writer.name).open("r+b") as file:
        body = bytearray(file.read(HEADER_BYTES - 4))
        body[8] = 1
        file.seek(0)
        file.write(bytes(body) + zlib.crc32(body).to_bytes(4, "little"))
    with pytest.raises(RingError, match="version 1"):
        read_header(writer.name)
    discovery.sweep(orphan_age_s=-1)
    assert segment_path(writer.name).exists()
    writer.close()


def silence(ring: str) -> None:
    """Make its heartbeat as old as this boot: then only the lock tells."""
    with segment_path(ring).open("r+b") as file:
        file.seek(8 * Word.HEARTBEAT_NS)
        file.write(bytes(8))


def test_a_ring_without_a_lock_is_kept_while_its_heart_beats(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer of an older version in another container holds no lock."""
    monkeypatch.setattr("actscope.ring.segment.Process.current", lambda: Process(2**22 + 1, 1, 42))
    monkeypatch.setattr("actscope.ring.segment.fcntl.flock", lambda fd, how: None)
    writer = RingWriter.create(RingSpec(8, 4, 4, 4))
    monkeypatch.undo()
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(runtime))
    assert not is_locked(writer.name)
    discovery.sweep()
    assert segment_path(writer.name).exists()
    silence(writer.name)
    discovery.sweep()
    assert not segment_path(writer.name).exists()
    writer.close()
