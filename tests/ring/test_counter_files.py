"""Counters of engines in the runtime directory: private, removed with their card, and read with care."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ring.test_discovery import a_card

from actscope.counters import Counter, CounterReport
from actscope.ring import discovery
from actscope.ring.counter_files import MAX_COUNTERS_BYTES, CounterFile, read_reports

LOG = logging.getLogger("actscope.test")


def test_what_a_process_publishes_is_read_by_others(runtime: Path) -> None:
    """One file a process, private, written only when a value has changed."""
    card, value = a_card(), [0]
    file = CounterFile(card.id, "model", lambda: [Counter("rows", value[0])], part=2, log=LOG)
    file.publish()
    path = runtime / f"counters-{card.id}-model.json"
    first = path.stat()
    assert first.st_mode & 0o777 == 0o600
    file.publish()
    assert path.stat().st_ino == first.st_ino
    value[0] = 7
    file.publish()
    CounterFile(card.id, "sidecar", lambda: [], part=2, log=LOG).publish()
    assert read_reports(card.id) == [
        CounterReport("model", [Counter("rows", 7)], card.id, 2),
        CounterReport("sidecar", [], card.id, 2),
    ]
    assert read_reports(a_card().id) == []


def test_a_loss_is_logged_where_it_is_published(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CounterFile(a_card().id, "model", lambda: [Counter("lost", 3, "loss", "Rows.", "Help.")], part=0, log=LOG)
    for _ in range(3):
        file.publish()
    assert [record.getMessage() for record in caplog.records] == ["lost = 3: Rows. What to do: Help"]


def test_counters_that_cannot_be_published_are_no_error(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a fault of what counts nor a full disk reaches the heartbeat that publishes; it is logged once."""

    def broken() -> list[Counter]:
        raise ZeroDivisionError

    file = CounterFile(a_card().id, "model", broken, part=0, log=LOG)
    file.publish()
    file.publish()
    assert [record.getMessage() for record in caplog.records] == ["counters are not published: ZeroDivisionError: "]


def test_a_process_that_is_started_again_carries_the_counts_of_the_dead_one_on(runtime: Path) -> None:
    """Those that it is told to; not current values; and not twice."""
    card = a_card()
    lost, held = Counter("lost", 3, "loss", "Rows.", "Help."), Counter("held", 9, "now", "Rows.")
    CounterFile(card.id, "sidecar", lambda: [lost, held], part=0, log=LOG).publish()
    now = [msgspec.structs.replace(lost, value=1)]
    for carry, value in ((("lost",), 4), ((), 1)):
        again = CounterFile(card.id, "sidecar", lambda: now, part=0, log=LOG, carry=carry)
        for _ in range(2):
            again.publish()
        assert [(one.name, one.value) for one in read_reports(card.id)[0].counters] == [("lost", value)]


def test_they_go_with_the_card_and_are_swept_when_the_engine_is_dead(runtime: Path) -> None:
    closed, dead, living = a_card(), a_card(pid_start=1), a_card()
    for card in (closed, dead, living):
        discovery.publish_card(card)
        CounterFile(card.id, "model", lambda: [], part=0, log=LOG).publish()
    discovery.withdraw_card(closed)
    discovery.sweep()
    assert sorted(path.name for path in runtime.iterdir()) == [
        f"counters-{living.id}-model.json",
        f"engine-{living.id}.json",
    ]


BAD: dict[str, Callable[[str], bytes]] = {
    "not json": lambda id: b"{",
    "not utf-8": lambda id: b'{"source": "\xff"}',
    "nested without end": lambda id: b"[" * 100_000,
    "another engine's": lambda id: _encoded(CounterReport("model", [], "0" * 16)),
    "a negative value": lambda id: _encoded(CounterReport("model", [Counter("rows", -1)], id)),
    "a value of 70 bits": lambda id: (
        b'{"source":"model","engine":"%s","counters":[{"name":"a","value":1%s}]}' % (id.encode(), b"0" * 21)
    ),
    "a name with quotes": lambda id: _encoded(CounterReport("model", [Counter('a"} 1', 1)], id)),
    "a text of 2 kB": lambda id: _encoded(CounterReport("model", [Counter("a", 1, help="x" * 2000)], id)),
    "too many counters": lambda id: _encoded(CounterReport("model", [Counter("a", 1)] * 1001, id)),
    "too large": lambda id: b" " * (MAX_COUNTERS_BYTES + 1),
}


def _encoded(report: CounterReport) -> bytes:
    return msgspec.json.encode(report)


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_file_that_lies_is_left_out_with_a_word(
    runtime: Path, content: Callable[[str], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    card = a_card()
    discovery.publish_card(card)
    path = runtime / f"counters-{card.id}-model.json"
    path.write_bytes(content(card.id))
    path.chmod(0o600)
    CounterFile(card.id, "sidecar", lambda: [Counter("rows", 1)], part=0, log=LOG).publish()
    assert [report.source for report in read_reports(card.id)] == ["sidecar"]
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


def test_links_and_open_files_are_not_read(runtime: Path, tmp_path: Path) -> None:
    card = a_card()
    discovery.publish_card(card)
    good = tmp_path / "good.json"
    good.write_bytes(_encoded(CounterReport("model", [], card.id)))
    good.chmod(0o600)
    os.symlink(good, runtime / f"counters-{card.id}-model.json")
    shared = runtime / f"counters-{card.id}-sidecar.json"
    shared.write_bytes(good.read_bytes())
    shared.chmod(0o644)
    os.mkfifo(runtime / f"counters-{card.id}-pipe.json", 0o600)
    assert read_reports(card.id) == []
