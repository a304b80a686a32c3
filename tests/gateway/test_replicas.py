"""A server with several engines: each is read, changed and shown, and one that cannot be read costs nobody else anything."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.gateway.stage import EngineProcess, Place, Stage, assert_exact, await_scores, chat, chunks, picture
from support.waiting import until

from actscope.gateway import GatewaySettings
from actscope.gateway.scores.probe_table import Versions, table_of
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.upstream import engine
from actscope.gateway.upstream.upstream import Upstream
from actscope.probes import Bank, Probe, ProbedModel
from actscope.probes.format import ProbeInfo

TWO = ("--kind", "vllm", "--replicas", "2")


def start(stage: Stage, *arguments: str, **settings: Any) -> tuple[EngineProcess, Place]:
    scripted = stage.engine(*arguments)
    place = stage.gateway(upstream=scripted.endpoint, **settings)
    await_scores(place)
    return scripted, place


def info(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/v1/actscope/info").json()
    return found


def upload(site: str = "layers.1.resid_post") -> dict[str, Any]:
    return {"vector": [0.0] * 4, "site": site, "threshold": 0.5, "token_mask": "none"}


def test_requests_that_run_in_turns_all_have_their_scores(stage: Stage) -> None:
    _, place = start(stage, *TWO)
    with place.client() as client:
        for n in range(4, 8):
            found = picture(chunks(client, chat(actscope=True, max_tokens=n)))
            assert_exact(found)
            assert found.letters("joy") == "c" * (5 + n) + "n"
        told = info(client)
    assert [one["replica"] for one in told["replicas"]] == [0, 1]
    assert (told["replicas_expected"], told["scores"]) == (2, None)
    assert all(one["ring"]["rows"] > 0 for one in told["replicas"])
    assert told["ring"]["rows"] == sum(one["ring"]["rows"] for one in told["replicas"])


def test_two_engines_in_two_stages_each_are_four_rings(stage: Stage) -> None:
    _, place = start(stage, *TWO, "--parts", "2")
    with place.client() as client:
        for n in range(4, 8):
            found = picture(chunks(client, chat(actscope=True, max_tokens=n)))
            assert_exact(found)
            assert found.letters("joy") == "c" * (5 + n) + "n"
        changed = client.put("/v1/actscope/probes/calm", json=upload("layers.5.resid_post"))
        assert changed.status_code == 200
        for _ in range(2):
            assert picture(chunks(client, chat(actscope=True, max_tokens=4))).letters("calm") == "c" * 9 + "n"


def test_a_probe_is_put_into_every_engine_and_removed_from_every_one(stage: Stage) -> None:
    _, place = start(stage, *TWO)
    with place.client() as client:
        assert client.put("/v1/actscope/probes/calm", json=upload()).status_code == 200
        assert [one["probes"] for one in info(client)["replicas"]] == [["danger", "joy", "calm"]] * 2
        for _ in range(2):
            found = picture(chunks(client, chat(actscope=True, max_tokens=4)))
            assert_exact(found)
            assert found.letters("calm") == "c" * 9 + "n"
        assert client.delete("/v1/actscope/probes/calm").status_code == 200
        assert [one["probes"] for one in info(client)["replicas"]] == [["danger", "joy"]] * 2
        assert client.delete("/v1/actscope/probes/calm").status_code == 404


def test_a_mark_of_a_request_that_has_not_begun_waits_in_every_engine(stage: Stage) -> None:
    scripted, place = start(stage, *TWO)
    with place.client() as client:
        assert client.post("/v1/actscope/requests/later/mark", json={"why": "odd"}).json()["state"] == "pending"
    assert sorted((mark["replica"], mark["request"]) for mark in scripted.state()["marks"]) == [
        (0, "later"),
        (1, "later"),
    ]


def test_the_commands_change_and_mark_in_every_engine(stage: Stage) -> None:
    scripted, place = start(stage, *TWO)
    marked = stage.command("mark", "later", "--wait", "60", "--json")
    assert json.loads(marked.stdout)[0]["state"] == "pending", marked.stderr
    assert sorted(mark["replica"] for mark in scripted.state()["marks"]) == [0, 1]
    assert [p["id"] for p in json.loads(stage.command("probe", "list", "--json").stdout)] == ["danger", "joy"]
    removed = stage.command("probe", "remove", "joy")
    assert removed.returncode == 0, removed.stderr
    again = stage.command("probe", "remove", "joy")
    assert again.returncode != 0
    with place.client() as client:
        client.get("/v1/actscope/probes").raise_for_status()
        for _ in range(2):
            assert picture(chunks(client, chat(actscope=True, max_tokens=2))).headers == [["danger"]]


def test_two_servers_behind_a_router_are_one_and_come_and_go(stage: Stage) -> None:
    """Of the server that is killed only the requests that ran there fail; one that is started later is read."""
    engines = [stage.engine("--kind", "vllm") for _ in range(2)]
    router = stage.router(*engines)
    place = stage.gateway(upstream=router.endpoint)
    await_scores(place)
    with place.client() as client:
        assert len(info(client)["replicas"]) == 2
        for _ in range(4):
            assert_all_scored(client)
        put = client.put("/v1/actscope/probes/calm", json=upload())
        assert put.status_code == 200
        rows = info(client)["ring"]["rows"]
        engines[0].process.kill()
        engines[0].process.wait()
        until(lambda: len(info(client)["replicas"]) == 1)
        assert info(client)["ring"]["rows"] >= rows, "counts of an engine that is gone stay in the sum"
        for _ in range(2):
            assert_all_scored(client)
        late = stage.engine("--kind", "vllm")
        until(lambda: len(info(client)["replicas"]) == 2)
        with late.client() as direct:
            direct.post("/v1/chat/completions", json=chat(max_tokens=3), headers={"x-request-id": "late"})
        until(lambda: client.get("/v1/actscope/requests/chatcmpl-late").json().get("state") == "done")


def assert_all_scored(client: httpx.Client) -> None:
    found = picture(chunks(client, chat(actscope=True, max_tokens=4)))
    assert_exact(found)
    assert found.letters("joy") == "c" * 9 + "n"


def seconds(send: Callable[[], object]) -> float:
    began = time.monotonic()
    send()
    return time.monotonic() - began


MANY: dict[str, Any] = {"n": 16, "max_tokens": 3, "actscope": True}


@pytest.mark.parametrize("stream", [True, False])
def test_choices_whose_rows_never_come_hold_an_answer_up_once(stage: Stage, stream: bool) -> None:
    """One deadline for the answer: 16 choices of 0.25 s would be 4 s."""
    _, place = start(stage, "--kind", "vllm")
    with place.client() as client:
        body = chat(**MANY, scripted={"late_rows": 60.0}, stream=stream)
        waited = seconds(lambda: client.post("/v1/chat/completions", json=body).raise_for_status())
    assert waited < 1.5


@pytest.mark.parametrize("stream", [True, False])
def test_choices_whose_rows_are_late_have_them(stage: Stage, stream: bool) -> None:
    """They wait together, and each has its last rows within the one deadline."""
    _, place = start(stage, "--kind", "vllm", row_grace_seconds=5.0)
    with place.client() as client:
        body = chat(**MANY, scripted={"late_rows": 0.3})
        found = chunks(client, body) if stream else [client.post("/v1/chat/completions", json=body).json()]
        for index in range(16):
            one = picture(found, index)
            assert_exact(one)
            assert one.letters("joy") == "c" * 8 + "n"


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_ran_where_no_ring_is_read_does_not_wait(stage: Stage, stream: bool) -> None:
    """An engine of another host: its answers come at once, without scores, and `info` says that it is not read."""
    _, place = start(stage, *TWO, "--unseen", "1", row_grace_seconds=30.0)
    with place.client() as client:
        told = info(client)
        assert (len(told["replicas"]), told["replicas_expected"]) == (1, 2)
        assert "1 of 2 engines" in told["scores"]
        for _ in range(2):
            body = chat(n=2, max_tokens=3, actscope=True, stream=stream)
            assert seconds(partial(client.post, "/v1/chat/completions", json=body)) < 5


@pytest.mark.parametrize("state", ["dead", "hung"])
def test_a_gateway_starts_while_the_control_side_is_down_and_takes_it_up_when_it_comes(
    stage: Stage, state: str
) -> None:
    """The sidecar of vLLM: requests are served with the scores that are in the ring, and `info` says what is missing."""
    scripted = stage.engine("--kind", "vllm", "--controls", state)
    place = stage.gateway(upstream=scripted.endpoint)
    await_scores(place)
    with place.client() as client:
        assert_all_scored(client)
        until(lambda: info(client)["replicas"][0]["controls"] == "silent")
        assert "control API does not answer" in info(client)["replicas"][0]["why"]
        scripted.process.send_signal(signal.SIGUSR2)
        until(lambda: info(client)["replicas"][0]["controls"] == "answer")
        assert info(client)["replicas"][0]["why"] is None
        assert client.put("/v1/actscope/probes/calm", json=upload()).status_code == 200


def test_a_server_whose_cards_cannot_be_used_is_proxied_and_says_why(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our own, put in here: it must not turn anybody away."""
    served = stage.engine("--kind", "vllm")
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(stage.directory))
    settings = GatewaySettings(upstream=served.endpoint)

    def broken(directory: Path) -> None:
        raise RuntimeError(f"{directory} is odd")

    monkeypatch.setattr(engine, "_load_texts", broken)

    async def run() -> str | None:
        upstream = Upstream(settings)
        await upstream.open(Sessions(settings))
        try:
            return upstream.require().without_scores
        finally:
            await upstream.close()

    assert "is odd" in str(asyncio.run(run()))


# Versions of probes in engines that count generations apart


def table(generation: int, *probes: tuple[str, str, int]) -> dict[str, Any]:
    """An engine's table of (id, digest, since)."""
    listed = [{"slot": i, "id": name, "site": "s", "since": since} for i, (name, _, since) in enumerate(probes)]
    return {"generation": generation, "probes": listed, "digests": {name: digest for name, digest, _ in probes}}


def test_a_probe_has_one_number_in_all_engines_and_two_probes_have_two() -> None:
    """Whatever they were counted at; in a single engine numbers are its own."""
    versions = Versions()
    assert table_of(table(3, ("a", "x", 3)), versions=versions).columns.since == (3,)
    assert table_of(table(5, ("a", "x", 5)), versions=versions).columns.since == (5,), "put again"
    versions.are_shared = True
    other = table_of(table(2, ("a", "x", 1), ("b", "y", 2)), versions=versions)
    assert other.columns.since == (5, 2)
    swapped = table_of(table(5, ("a", "z", 5), ("b", "y", 4)), versions=versions)
    assert swapped.columns.since == (6, 2)
    assert table_of(table(9, ("a", "z", 9)), versions=versions).columns.since == (6,)


def test_the_same_probe_has_the_same_digest_in_every_bank() -> None:
    facts = ProbedModel("m", "r", 2, 1)
    probes = [
        Probe(ProbeInfo(id="p", site="layers.0.resid_post", bias=b), np.array([1, w], np.float32)) for b, w in BOTH
    ]
    digests = []
    for probe in probes:
        bank = Bank(facts)
        bank.put(probe)
        digests.append(json.loads(bank.table())["digests"]["p"])
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


#: Bias and second weight: the first two are the same probe.
BOTH = [(0.5, 2.0), (0.5, 2.0), (0.25, 2.0), (0.5, 3.0)]
