"""Requests that go to the engine directly with one id have a log each, by the engine's own ids; a shared id names them all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.gateway.stage import EngineProcess, Picture, Stage, assert_exact, await_scores, chat, chunks, picture
from support.waiting import until


@pytest.fixture
def engine(stage: Stage) -> EngineProcess:
    return stage.engine("--kind", "vllm", "--replicas", "2")


@pytest.fixture
def client(stage: Stage, engine: EngineProcess) -> Iterator[httpx.Client]:
    place = stage.gateway(upstream=engine.endpoint)
    await_scores(place)
    with place.client() as client:
        yield client


def send(engine: EngineProcess, id: str, path: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    """A request to the engine itself, with its X-Request-Id."""
    with engine.client() as direct:
        body = (
            {"prompt": fields.pop("content", "x")}
            if path == "/v1/completions"
            else chat(content=fields.pop("content", "x"))
        )
        answer = direct.post(path, json=body | {"return_token_ids": True} | fields, headers={"x-request-id": id})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def names(client: httpx.Client, shared: str, n: int) -> list[str]:
    """The ids that the answer to a shared id names, when there are `n` of them."""

    def look() -> list[str]:
        answer = client.get(f"/v1/actscope/requests/{shared}")
        told = str(answer.json().get("error", {}).get("message"))
        found = told.rpartition(" one of ")[2].split(", ")
        return found if len(found) == n and shared in found[0] else []

    return until(look)


def ended(client: httpx.Client, request: str) -> dict[str, Any]:
    """A request when it has ended."""

    def look() -> dict[str, Any] | None:
        payload: dict[str, Any] = client.get(f"/v1/actscope/requests/{request}").json()
        return payload if payload.get("state") == "done" else None

    return until(look)


def whole(client: httpx.Client, request: str) -> Picture:
    """A request that has ended, put together; its scores are of its own rows."""
    payload = ended(client, request)
    payload.pop("state")
    found = Picture()
    found.add(payload)
    assert_exact(found)
    return found


def ids_of(answer: dict[str, Any], index: int = 0) -> list[int]:
    """The tokens of which the engine has made rows: all but the last one."""
    choice = answer["choices"][index]
    prompt = answer.get("prompt_token_ids") or choice["prompt_token_ids"]
    return [*prompt, *choice["token_ids"]][:-1]


CONTENTS = ("hi snow", "the river sleeps", "a quiet hill")


@pytest.mark.parametrize("concurrent", [True, False])
def test_requests_that_share_an_id_have_their_own_logs(
    client: httpx.Client, engine: EngineProcess, concurrent: bool
) -> None:
    slow: dict[str, Any] = {"scripted": {"delay": 0.02}} if concurrent else {}
    with ThreadPoolExecutor(3 if concurrent else 1) as pool:
        jobs = [pool.submit(send, engine, "trace", content=c, max_tokens=9, **slow) for c in CONTENTS]
        answers = [job.result() for job in jobs]
    requests = names(client, "chatcmpl-trace", 3)
    found = [list(whole(client, request).ids.values()) for request in requests]
    assert sorted(found) == sorted(ids_of(answer) for answer in answers)
    assert client.get("/v1/actscope/info").json()["ring"]["mismatched_rows"] == 0
    refused = client.get("/v1/actscope/requests/chatcmpl-trace")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "several_requests")
    assert "X-Request-Id of 3 requests" in refused.json()["error"]["message"]
    assert client.post("/v1/actscope/requests/chatcmpl-trace/mark", json={}).status_code == 404
    listed = client.get("/v1/actscope/requests").json()["requests"]
    assert {one["request"] for one in listed} == set(requests)


def test_choices_of_requests_that_share_an_id_have_their_own_logs(client: httpx.Client, engine: EngineProcess) -> None:
    for content in CONTENTS[:2]:
        send(engine, "twice", "/v1/completions", content=content, n=2, max_tokens=4)
    assert len(names(client, "cmpl-twice", 4)) == 4
    second = names(client, "1_cmpl-twice-0", 2)
    for request in second:
        assert request.startswith("1_cmpl-twice-0-")
        assert len(whole(client, request).ids) > 4


def test_a_shared_id_is_no_news_while_one_request_has_it(client: httpx.Client, engine: EngineProcess) -> None:
    """By the id of its answer, the id of its choice, or the engine's own."""
    answer = send(engine, "alone", "/v1/completions", content="hi", max_tokens=3)
    one = until(lambda: client.get("/v1/actscope/requests").json()["requests"])[0]["request"]
    for name in (answer["id"], "cmpl-alone-0", one):
        assert list(whole(client, name).ids.values()) == ids_of(answer)


def test_a_copied_id_of_the_gateways_own_request_stays_its_own(client: httpx.Client, engine: EngineProcess) -> None:
    ours = picture(chunks(client, chat(content="hi snow", actscope=True, max_tokens=3)))
    send(engine, ours.request.removeprefix("chatcmpl-"), content="the river sleeps", max_tokens=7)
    until(lambda: len(client.get("/v1/actscope/requests").json()["requests"]) == 2)
    assert list(whole(client, ours.request).ids) == list(ours.ids)


def test_a_mark_of_one_of_several_goes_under_the_engines_own_id_to_the_engine_that_ran_it(
    client: httpx.Client, engine: EngineProcess
) -> None:
    for content in CONTENTS[:2]:
        send(engine, "marked", content=content, max_tokens=3)
    for request in names(client, "chatcmpl-marked", 2):
        assert client.post(f"/v1/actscope/requests/{request}/mark", json={}).status_code == 200
    marks = engine.state()["marks"]
    assert [mark["request"] for mark in marks] == names(client, "chatcmpl-marked", 2)
    assert sorted(mark["replica"] for mark in marks) == [0, 1]


def test_without_random_suffixes_an_id_keeps_its_last_digits_and_each_request_has_a_log(stage: Stage) -> None:
    """VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: what looks like vLLM's suffix is the client's, and ids come again."""
    engine = stage.engine("--kind", "vllm", "--plain-ids")
    place = stage.gateway(upstream=engine.endpoint)
    await_scores(place)
    with place.client() as client:
        own = picture(chunks(client, chat(actscope=True, max_tokens=5)))
        assert own.letters("joy") == "c" * 10 + "n"
        answers = [send(engine, "build-0123abcd", content=c, max_tokens=4) for c in CONTENTS[:2]]
        requests = names(client, "chatcmpl-build-0123abcd", 2)
        for request, answer in zip(requests, answers, strict=True):
            assert ended(client, request)["tokens"]["ids"] == ids_of(answer)
