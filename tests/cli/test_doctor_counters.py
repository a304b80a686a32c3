"""The doctor says what was lost and what to do: on this machine, of a gateway, and of a server that is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from support.gateway.stage import TOKEN, EngineProcess, Place, Stage, chat

from actscope.cli.common.findings import Finding
from actscope.cli.doctor import counters
from actscope.counters import Counter
from actscope.ring.counter_files import CounterFile

LOG = logging.getLogger("actscope.test")
LOST = Counter("model_dropped_rows", 9, "loss", "Rows that were\x1b[2J dropped.", "Tap fewer sites.")


@pytest.fixture
def engine(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> EngineProcess:
    """One that has published a loss of nine rows."""
    found = stage.engine("--kind", "vllm")
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(stage.directory))
    CounterFile(found.card, "model", lambda: [LOST, Counter("model_rows", 30)], part=0, log=LOG).publish()
    return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    found = Stage()
    yield found
    found.close()


def test_a_loss_is_found_on_this_machine_at_a_gateway_and_at_vllms_own_address(
    stage: Stage, engine: EngineProcess
) -> None:
    """In the same words, as a NO, and without the escape that the engine's file has."""
    place: Place = stage.gateway(upstream=engine.endpoint)
    lost = Finding("model_dropped_rows", False, "9: Rows that were?[2J dropped.", "Tap fewer sites.")
    assert lost in list(counters.of_this_machine())
    assert lost in list(counters.of_server(place.url, TOKEN))
    found = list(counters.of_server(engine.endpoint, ""))
    assert found[0].what == "server" and found[0].ok and engine.card in found[0].found
    assert found[1:] == [lost]
    done = stage.command("doctor", place.url, "--token", TOKEN)
    assert done.returncode == 1
    assert "NO   model_dropped_rows 9: Rows that were?[2J dropped.\n      -> Tap fewer sites." in done.stdout


def test_without_a_loss_all_is_in_order(stage: Stage) -> None:
    stage.engine()
    place = stage.gateway()
    with place.client() as client:
        assert client.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200
    found = list(counters.of_server(f"{place.url}/v1", TOKEN))
    assert [(one.what, one.ok) for one in found] == [("server", True), ("counters", True)]
    assert "nothing was lost" in found[1].found


def test_what_is_no_gateway_or_needs_a_token_is_said(stage: Stage, engine: EngineProcess) -> None:
    place = stage.gateway(upstream=engine.endpoint)
    [refused] = counters.of_server(place.url, "wrong")
    assert not refused.ok and "answers 401" in refused.found and "--token TOKEN" in refused.remedy
    [silent] = counters.of_server("http://127.0.0.1:9", "")
    assert not silent.ok and "does not answer" in silent.found
