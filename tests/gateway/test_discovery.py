"""A card is matched by the processes that listen at an address, else by the model, with a warning where that is doubtful."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actscope.errors import SettingsError
from actscope.gateway import GatewaySettings
from actscope.gateway.upstream import discovery
from actscope.gateway.upstream.connection import Connection
from actscope.gateway.upstream.discovery import Found, at_address, by_card, engines, without_endpoint
from actscope.gateway.upstream.process_tree import descends, servers_of
from actscope.gateway.upstream.upstream import Upstream
from actscope.ring.discovery import EngineCard


def card(name: str, **fields: Any) -> EngineCard:
    """A card of kind vllm of this process, with some fields of its own."""
    facts: dict[str, Any] = dict.fromkeys(("revision", "device", "dtype", "tokenizer", "endpoint", "boot_id"), "")
    facts |= dict.fromkeys(("pid_start", "n_layers", "d_model", "max_context", "started_ns"), 0)
    facts |= {
        "id": name * 16,
        "pid": 1,
        "kind": "vllm",
        "model": "m",
        "special_ids": [],
        "ring": f"actscope-0-{name * 16}",
    }
    return msgspec.convert({**facts, **fields}, EngineCard)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[EngineCard]:
    """What runs here, newest first; nothing is known of who listens."""
    found: list[EngineCard] = []
    monkeypatch.setattr(discovery, "read_cards", lambda: sorted(found, key=lambda c: c.started_ns, reverse=True))
    return found


ELSEWHERE = "http://gpu-box:8000"


def test_parts_are_one_engine_when_all_are_there(cards: list[EngineCard]) -> None:
    cards += [card("b", group="g", part=1, parts=2, started_ns=9), card("c", started_ns=5)]
    assert [[c.id[0] for c in one] for one in engines()] == [["c"]]
    cards.append(card("a", group="g", part=0, parts=2, started_ns=8))
    assert [[c.id[0] for c in one] for one in engines()] == [["a", "b"], ["c"]]


def test_data_parallel_engines_share_a_group_and_are_not_parts(cards: list[EngineCard]) -> None:
    cards += [card("a", group="g"), card("b", group="g", started_ns=1)]
    assert [[c.id[0] for c in one] for one in engines()] == [["b"], ["a"]]


def test_without_a_visible_listener_all_cards_of_the_model_are_taken_with_a_warning(
    cards: list[EngineCard],
) -> None:
    cards += [card("a", model="org/m", started_ns=1), card("b", model="other", started_ns=2)]
    assert [i[0] for i in at_address(ELSEWHERE, ["served", "org/m"]).ids] == ["a"]
    assert at_address(ELSEWHERE, ["served", "org/m"]).doubt == ""
    cards.append(card("c", model="org/m", started_ns=3))
    found = at_address(ELSEWHERE, ["org/m"])
    assert found.ids == ("c" * 16, "a" * 16)
    assert "2 servers here have this model; all are read" in found.doubt
    none = at_address(ELSEWHERE, ["unheard-of"])
    assert none.replicas == ()
    assert "serves another model" in none.doubt


def test_a_model_in_a_directory_is_the_same_by_any_of_its_names(cards: list[EngineCard], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    cards.append(card("a", model="short", tokenizer=str(tmp_path / "link")))
    assert at_address(ELSEWHERE, [f"{tmp_path}/model/"]).replicas


def test_one_that_says_where_it_is_is_not_guessed_to_be_elsewhere(cards: list[EngineCard]) -> None:
    cards.append(card("a", endpoint="unix:/x"))
    assert at_address(ELSEWHERE, ["m"]) == Found(ELSEWHERE)
    assert by_card("") == by_card("a" * 16) == Found("unix:/x", ((cards[0],),))
    assert without_endpoint() == ()


def test_the_listener_of_a_port_is_found_with_its_descendants() -> None:
    """A child of the listener is its family; the listener is no child of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        servers = servers_of(f"http://localhost:{listening.getsockname()[1]}/v1")
        assert os.getpid() in servers
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert descends(child.pid, frozenset({os.getpid()}))
        assert not descends(os.getpid(), frozenset({child.pid}))
        child.communicate(b"\n")
    assert servers_of(ELSEWHERE) == servers_of("unix:/x") == frozenset()


def test_what_was_taken_and_what_is_missing_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which card; that a server runs without the plugin; that an engine's server has to be named."""
    caplog.set_level(logging.INFO)
    upstream = Upstream(GatewaySettings())
    for _ in range(2):
        upstream._log_choice(Found("http://x", (), "engine e runs here, but is another server's"))
    upstream._log_choice(Found("http://x", ((card("a"),),), "several engines here serve this model"))
    monkeypatch.setattr(discovery, "without_endpoint", lambda: (card("a"),))
    for _ in range(2):
        asyncio.run(upstream._log_missing_endpoint())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert "pip install 'actscope[vllm]'" in said[0]
    assert "another server's" in said[0]
    assert said[1].startswith("engine aaaaaaaaaaaaaaaa: m, vllm, at http://x")
    assert "several engines" in said[2]
    assert "--upstream http://localhost:8000" in said[3]


def test_a_key_is_not_printed_and_has_no_blanks() -> None:
    assert "sesame" not in repr(GatewaySettings(upstream_key="sesame"))
    with pytest.raises(SettingsError, match="upstream_key"):
        GatewaySettings(upstream_key="a\nb")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="unix:/path or http"):
        Connection("gpu-box:8000")
