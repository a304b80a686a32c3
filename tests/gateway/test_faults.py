"""What goes wrong behind the gateway or in front of it is told, in OpenAI's shape, and nobody else is hurt."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from support.gateway.stage import (
    EngineProcess,
    Place,
    Stage,
    assert_exact,
    await_engine,
    chat,
    chunks,
    picture,
)
from support.waiting import until


def lines(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize("fault", ["hang_up_after", "error_after"])
def test_an_engine_that_fails_in_mid_stream(client: httpx.Client, place: Place, fault: str) -> None:
    """The stream ends with an error that clients raise, and the request is `failed`."""
    body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={fault: 4})}
    response = client.post("/v1/chat/completions", json=body)
    assert json.loads(lines(response)[-1])["error"]["message"]
    assert client.get(f"/v1/actscope/requests/{response.headers['x-request-id']}").json()["state"] == "failed"
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as python:
        stream = python.chat.completions.create(
            model="scripted", messages=body["messages"], stream=True, extra_body={"scripted": {fault: 4}}
        )
        with pytest.raises(openai.APIError):
            list(stream)


def test_an_engine_that_goes_in_mid_stream_is_said_to_have_closed_its_connection(client: httpx.Client) -> None:
    """Not in the words of HTTP's transfer encoding, which readers of the page cannot act on."""
    body = {"stream": True, **chat(max_tokens=9, scripted={"hang_up_after": 4})}
    message = json.loads(lines(client.post("/v1/chat/completions", json=body))[-1])["error"]["message"]
    assert "closed the connection" in message
    assert "ransfer" not in message


def test_an_engine_that_fails_before_it_answers(client: httpx.Client) -> None:
    """Nothing has been sent yet: a plain 502."""
    response = client.post("/v1/chat/completions", json=chat(scripted={"hang_up_after": 0}))
    assert response.status_code in (500, 502)
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("status", [400, 422, 429, 500])
def test_refusals_of_the_engine_are_passed_on(client: httpx.Client, status: int) -> None:
    """With its status and its words; the request is not remembered."""
    before = client.get("/v1/actscope/requests").json()
    response = client.post("/v1/chat/completions", json=chat(stream=True, scripted={"refuse": status}))
    assert (response.status_code, response.json()["error"]["message"]) == (status, "scripted refusal")
    assert client.get("/v1/actscope/requests").json() == before


def test_the_engine_dies_and_another_comes(stage: Stage) -> None:
    """A death in mid-stream is told; then 503 with Retry-After; then the new engine serves, with exact scores."""
    engine = stage.engine()
    place = stage.gateway()
    with place.client() as client:
        body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={"die_after": 4})}
        response = client.post("/v1/chat/completions", json=body)
        assert json.loads(lines(response)[-1])["error"]["code"] == "engine_failed"
        engine.process.wait(10)
        until(lambda: client.get("/health").json()["engine"] == "waiting")
        waiting = client.post("/v1/chat/completions", json=chat())
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "2")
        assert client.get("/v1/actscope/info").json()["engine"]["state"] == "waiting"
        stage.engine()
        await_engine(place)
        found = picture(chunks(client, chat(actscope=True, max_tokens=6)))
        assert_exact(found)
        assert found.letters("joy") == "c" * 11 + "n"


def test_a_gateway_that_starts_first_waits(stage: Stage) -> None:
    """The order of start does not matter."""
    place = stage.gateway(up=False)
    with place.client() as client:
        assert client.get("/v1/models").status_code == 503
        stage.engine()
        await_engine(place)
        assert client.get("/v1/models").json()["data"][0]["id"] == "scripted"


def test_an_engine_is_chosen_by_card_or_by_address(stage: Stage) -> None:
    """Two engines run; each gateway has the one that it was given, the newest by default."""
    first, second = stage.engine("--model", "first"), stage.engine("--model", "second")
    for upstream, model in [(first.card, "first"), (first.endpoint, "first"), (second.card, "second"), ("", "second")]:
        place = stage.gateway(upstream=upstream)
        with place.client() as client:
            assert client.get("/v1/actscope/info").json()["engine"]["model"] == model
            assert_exact(picture(chunks(client, chat(actscope=True, max_tokens=3))))


def test_a_client_that_goes_away_aborts_its_request(client: httpx.Client, engine: EngineProcess) -> None:
    """The engine stops, and the request is `aborted`."""
    body = {"stream": True, **chat(max_tokens=9, scripted={"hold_after": 2})}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        request = response.headers["x-request-id"]
    until(lambda: request in engine.state()["aborted"])
    until(lambda: client.get(f"/v1/actscope/requests/{request}").json()["state"] == "aborted")


def test_a_request_can_be_cancelled_by_another(place: Place, engine: EngineProcess) -> None:
    """Its own client's stream ends properly, with all that is known and the reason `abort`."""
    body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={"hold_after": 2})}
    with place.client() as own, place.client() as other:
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
            assert other.delete(f"/v1/actscope/requests/{request}").json() == {"request": request, "state": "aborted"}
            response.read()
        events = lines(response)
        assert events[-1] == "[DONE]"
        found = picture([json.loads(e) for e in events[:-1]])
        assert_exact(found)
        assert found.final is not None
        assert found.final["finish_reason"] == "abort"
        until(lambda: request in engine.state()["aborted"])
        assert other.delete(f"/v1/actscope/requests/{request}").json()["state"] == "aborted"
        assert other.delete("/v1/actscope/requests/never").status_code == 404


def test_a_cancelled_request_that_does_not_stream_is_not_sent_again(place: Place, engine: EngineProcess) -> None:
    """OpenAI's client, with its usual retries, raises, and the engine sees no second request."""
    known = {r["request"] for r in requests_of(place)}
    with (
        openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=2) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        extra = {"scripted": {"hold_after": 2}}
        messages: Any = [{"role": "user", "content": "hi snow"}]
        asked = pool.submit(
            lambda: client.chat.completions.create(model="scripted", messages=messages, extra_body=extra)
        )
        (mine,) = until(lambda: {r["request"] for r in requests_of(place)} - known)
        with place.client() as other:
            other.delete(f"/v1/actscope/requests/{mine}")
        with pytest.raises(openai.BadRequestError) as cancelled:
            asked.result(30)
    assert cancelled.value.code == "request_cancelled"
    assert cancelled.value.response.headers["x-should-retry"] == "false"
    assert {r["request"] for r in requests_of(place)} - known == {mine}


def requests_of(place: Place) -> list[dict[str, Any]]:
    with place.client() as client:
        found: list[dict[str, Any]] = client.get("/v1/actscope/requests").json()["requests"]
        return found


def test_completions_in_flight_are_bounded(stage: Stage) -> None:
    """One too many is 429, and the others go on."""
    engine = stage.engine()
    place = stage.gateway(max_in_flight=1)
    body = {"stream": True, **chat(max_tokens=4, scripted={"hold_after": 1})}
    with place.client() as own, place.client() as other:
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            refused = other.post("/v1/chat/completions", json=chat())
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            engine.release()
            assert "[DONE]" in response.read().decode()
        assert other.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"messages": [\n  {"role": }\n]}', None, "line 2, column 12"),
        (b"", None, "JSON object"),
        (b"[]", None, "JSON object"),
        (b'{"messages": "x"}', "messages", "messages"),
        (b'{"messages": []}', "messages", "messages"),
        (b'{"messages": [{"content": "x"}]}', "messages.0.role", "required"),
        (b'{"messages": [{"role": "user"}], "stream": "yes"}', "stream", "boolean"),
        (b'{"messages": [{"role": "user"}], "n": 0}', "n", "greater"),
        (b'{"messages": [{"role": "user"}], "max_tokens": -1}', "max_tokens", "greater"),
        (b'{"messages": [{"role": "user"}], "max_completion_tokens": -1}', "max_completion_tokens", "greater"),
        (b'{"messages": [{"role": "user"}], "seed": 18446744073709551616}', "seed", "less"),
        (b'{"messages": [{"role": "user"}], "seed": -9223372036854775809}', "seed", "greater"),
        (b'{"messages": [{"role": "user"}], "n": 8193}', "n", "at most 8192"),
        (b'{"messages": [{"role": "user"}], "actscope": {"probe": 1}}', "actscope", "actscope"),
        (b'{"messages": [{"role": "user"}], "actscope": "yes"}', "actscope", "actscope"),
        (b'{"messages": [{"role": "user"}], "temperature": NaN}', None, "JSON"),
        (b"\xff\xfe", None, ""),
        (b"[" * 100_000, None, ""),
    ],
)
def test_bad_bodies_are_named(client: httpx.Client, body: bytes, param: str | None, words: str) -> None:
    """400, with the field or the place in the text."""
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert param is None or error["param"].startswith(param)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_the_largest_seeds_are_taken(client: httpx.Client, seed: int) -> None:
    """The bounds themselves are within."""
    assert client.post("/v1/chat/completions", json=chat(max_tokens=1, seed=seed)).status_code == 200


def test_a_model_without_a_chat_template_is_reported(stage: Stage) -> None:
    """So that the page asks for plain completions, which have their scores all the same."""
    stage.engine("--no-chat-template")
    place = stage.gateway()
    with place.client() as client:
        assert client.get("/v1/actscope/info").json()["engine"]["has_chat_template"] is False
        refused = client.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_chat_template")
        body = {"prompt": "the hill", "actscope": True, "max_tokens": 5}
        assert_exact(picture(chunks(client, body, "/v1/completions")))


def test_a_request_keeps_its_own_engines_texts(stage: Stage) -> None:
    """When its engine has gone, its tokens still read as they did."""
    engine = stage.engine()
    place = stage.gateway()
    with place.client() as client:
        request = picture(chunks(client, chat(actscope=True, max_tokens=6))).request
        before = client.get(f"/v1/actscope/requests/{request}").json()
        events = client.get(f"/v1/actscope/requests/{request}/events").text
        engine.process.terminate()
        until(lambda: client.get("/health").json()["engine"] == "waiting")
        assert " snow" in before["tokens"]["text"]
        assert client.get(f"/v1/actscope/requests/{request}").json() == before
        assert client.get(f"/v1/actscope/requests/{request}/events").text == events


def test_probes_that_do_not_fit_are_refused(client: httpx.Client) -> None:
    """By the gateway for their form, by the engine for their size; and removing one that is not there is 404."""
    wrong = client.put("/v1/actscope/probes/p", json={"vector": [1, "x"], "site": "layers.1.resid_post"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "vector.1")
    short = client.put("/v1/actscope/probes/p", json={"vector": [1, 2], "site": "layers.1.resid_post"})
    assert (short.status_code, short.json()["error"]["param"]) == (400, "vector")
    assert client.delete("/v1/actscope/probes/p").status_code == 404
    assert client.put("/v1/actscope/probes/a%2Fb", json={"vector": [1], "site": "x"}).status_code in (400, 404, 405)


def test_long_prompts_are_delivered_whole(client: httpx.Client) -> None:
    """Thousands of prompt tokens with their scores come in the first payload, exact."""
    found = picture(chunks(client, chat(actscope=True, content="x" * 5000, max_tokens=3)))
    assert_exact(found)
    assert found.letters("joy") == "c" * (5003 + 2) + "n"
