"""An engine that shows itself as vLLM does: found by its address, its answers' bytes kept, its requests told apart."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.gateway.stage import (
    EngineProcess,
    Event,
    Picture,
    Place,
    Stage,
    assert_exact,
    await_engine,
    await_scores,
    chat,
    chunks,
    events,
    picture,
)
from support.waiting import until


@pytest.fixture
def client(vllm_place: Place) -> Iterator[httpx.Client]:
    with vllm_place.client() as client:
        yield client


def sent(engine: EngineProcess) -> dict[str, Any]:
    """The body that the engine was sent last."""
    found: dict[str, Any] = json.loads(engine.state()["body"])
    return found


# Bytes


def lines_of(response: httpx.Response) -> list[str]:
    return [line for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_asks_for_nothing_gets_the_engines_own_bytes(
    client: httpx.Client, vllm_engine: EngineProcess, path: str, stream: bool
) -> None:
    """Token ids that only the gateway wanted leave no trace: null where vLLM has null, and no chunk that says nothing."""
    body: dict[str, Any] = chat() if "chat" in path else {"prompt": "the hill"}
    body |= {"stream": stream, "max_tokens": 14, "stream_options": {"include_usage": True}}
    through = client.post(path, json=body)
    with vllm_engine.client() as direct:
        name = through.headers["x-request-id"].split("-", 1)[1]
        own = direct.post(path, json=body, headers={"x-request-id": name})
    assert through.text == own.text
    assert "token_ids" in own.text


def test_token_ids_come_as_the_engine_sends_them_when_the_client_asks_for_them(
    client: httpx.Client, vllm_engine: EngineProcess
) -> None:
    body = {"stream": True, "return_token_ids": True, **chat(max_tokens=14)}
    through = client.post("/v1/chat/completions", json=body)
    with vllm_engine.client() as direct:
        name = through.headers["x-request-id"].split("-", 1)[1]
        assert through.text == direct.post("/v1/chat/completions", json=body, headers={"x-request-id": name}).text


def test_fields_that_the_gateway_does_not_know_reach_the_engine_with_their_bytes(
    client: httpx.Client, vllm_engine: EngineProcess
) -> None:
    fields = (
        '"messages":[{"role":"tool","tool_call_id":"x","content":"hi snow"}],"max_tokens":1,"logprobs":true,'
        '"temperature":1e-05,"guided_regex":"\\u00e9+","logit_bias":{"17":0.10},"tools":[{"type":"function"}],'
        '"big":123456789012345678901234567890,"vllm_xargs":{"mine":[1,2.50]},"structured_outputs":{"choice":["a"]}'
    )
    content = "{" + fields + ',"actscope":true}'
    answer = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert vllm_engine.state()["body"] == "{" + fields + ',"return_token_ids":true}'


def test_an_echoed_prompt_keeps_its_text(client: httpx.Client, vllm_engine: EngineProcess) -> None:
    """vLLM drops it when token ids are asked for: so they are not, and the tokens are known from their rows."""
    body = {"prompt": "the hill", "echo": True, "max_tokens": 5, "actscope": True}
    for source in (chunks(client, body, "/v1/completions"), [client.post("/v1/completions", json=body).json()]):
        said = "".join(choice["text"] for chunk in source for choice in chunk["choices"])
        assert said.startswith("the hill snow")
        assert "return_token_ids" not in sent(vllm_engine)
        found = picture(source)
        assert_exact(found)
        assert found.letters("joy") == "c" * (max(found.ids) + 1)
        assert found.final is not None
        assert found.final["present"] == found.final["computed"] == 1 + len("the") + 1 + 4


def test_tokens_that_the_engine_does_not_show_are_known_from_their_rows(client: httpx.Client) -> None:
    """Hidden reasoning: the answer has no ids, streaming or not."""
    body = chat(actscope=True, max_tokens=6, scripted={"withhold_ids": True})
    for source in (chunks(client, body), [client.post("/v1/chat/completions", json=body).json()]):
        found = picture(source)
        assert_exact(found)
        assert found.prompt_tokens == 6
        assert found.letters("joy") == "c" * 11


def test_max_tokens_0_is_the_engines_business(client: httpx.Client, vllm_engine: EngineProcess) -> None:
    assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 0}).status_code == 200
    assert sent(vllm_engine)["max_tokens"] == 0


def test_many_prompts_in_one_request_have_their_own_scores(client: httpx.Client) -> None:
    body = {"prompt": [f"the {word}" for word in ("hill", "river", "snow") * 7], "n": 2, "actscope": True}
    source = chunks(client, body | {"max_tokens": 3}, "/v1/completions")
    requests = set()
    for index in range(42):
        found = picture(source, index)
        assert_exact(found)
        assert found.request.startswith(f"{index % 2}_cmpl-")
        assert found.request.endswith(f"-{index // 2}")
        requests.add(found.request)
    assert len(requests) == 42
    refused = client.post("/v1/completions", json={"prompt": ["x"] * 8193})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


# Scores and watching


def test_scores_of_a_cached_prefix_are_delivered_and_counted_apart(client: httpx.Client) -> None:
    found = picture(chunks(client, chat(actscope=True, max_tokens=4, scripted={"kept": 4})))
    assert_exact(found)
    assert found.letters("joy") == "c" * 9 + "n"
    assert found.final == {"finish_reason": "length", "present": 10, "computed": 9, "cached": 4}
    told = client.get(f"/v1/actscope/requests/{found.request}/events").text
    final = next(line for line in told.splitlines() if '"computed":' in line)
    assert json.loads(final.removeprefix("data: "))["cached"] == 4


def watch(client: httpx.Client, request: str) -> list[Event]:
    with client.stream("GET", f"/v1/actscope/requests/{request}/events") as response:
        return list(events(response.iter_lines()))


def put_together(found: list[Event]) -> Picture:
    whole = Picture()
    for event in found:
        if event.kind in ("token", "probe_update"):
            whole.add(event.data)
    return whole


def test_several_clients_watch_one_request_and_see_the_same(vllm_place: Place, vllm_engine: EngineProcess) -> None:
    """Three while it runs and one afterwards, each from the start; the one that asked wanted no scores."""
    body = {"stream": True, **chat(max_tokens=10, scripted={"hold_after": 5})}
    with vllm_place.client() as own, vllm_place.client() as other, ThreadPoolExecutor(3) as pool:
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
            lines = response.iter_lines()
            next(lines)
            watching = [pool.submit(watch, other, request) for _ in range(3)]
            until(
                lambda: len(other.get(f"/v1/actscope/requests/{request}").json().get("tokens", {}).get("ids", [])) > 10
            )
            vllm_engine.release()
            assert "actscope" not in "".join(lines)
        seen = [one.result() for one in watching] + [watch(other, request)]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    whole = put_together(seen[0])
    assert_exact(whole)
    assert whole.letters("joy") == "c" * 15 + "n"


def test_a_request_sent_to_the_server_directly_is_watched_under_the_id_of_its_answer(
    client: httpx.Client, vllm_engine: EngineProcess
) -> None:
    with vllm_engine.client() as direct:
        answer = direct.post(
            "/v1/chat/completions", json=chat(max_tokens=7), headers={"x-request-id": "direct-1"}
        ).json()
    until(lambda: client.get(f"/v1/actscope/requests/{answer['id']}").json().get("state") == "done")
    whole = put_together(watch(client, answer["id"]))
    assert_exact(whole)
    assert len(whole.ids) == 6 + 6


def test_a_mark_is_sent_under_the_rings_own_id_first(client: httpx.Client, vllm_engine: EngineProcess) -> None:
    """The ring calls a request otherwise than its clients do; the mark goes to the control side."""
    request = picture(chunks(client, chat(actscope=True, max_tokens=2))).request
    assert client.post(f"/v1/actscope/requests/{request}/mark", json={"why": "odd"}).status_code == 200
    marked = vllm_engine.state()["marks"][-1]
    assert marked["request"].rpartition("-")[0] == request
    assert marked["why"] == "odd"


# Finding


def test_the_card_is_the_one_of_the_server_that_listens_there(stage: Stage) -> None:
    """Two servers with the same model: each gateway has its own, the older one too."""
    engines = [stage.engine("--kind", "vllm") for _ in range(2)]
    for engine in engines:
        place = stage.gateway(upstream=f"{engine.endpoint}/v1")
        await_scores(place)
        with place.client() as client:
            assert_exact(picture(chunks(client, chat(actscope=True, max_tokens=3))))


def test_another_servers_card_is_never_taken_and_the_right_one_is_when_it_comes(stage: Stage) -> None:
    """A server without the plugin is proxied; its card, once there, is found without a restart."""
    stage.engine("--kind", "vllm")
    plain = stage.engine("--kind", "vllm", "--no-card")
    place = stage.gateway(upstream=plain.endpoint)
    with place.client() as client:
        assert client.get("/v1/actscope/info").json()["ring"] is None
        answer = client.post("/v1/chat/completions", json=chat(actscope=True, max_tokens=3))
        assert answer.json()["choices"][0]["message"]["content"]
        assert "return_token_ids" not in sent(plain)
        assert client.get("/v1/actscope/probes").json() == {"generation": 0, "probes": []}
        upload = {"vector": [0.0] * 4, "site": "layers.1.resid_post"}
        refused = client.put("/v1/actscope/probes/calm", json=upload)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_probes")
        plain.process.send_signal(signal.SIGUSR1)
        await_scores(place)
        assert_exact(picture(chunks(client, chat(actscope=True, max_tokens=3))))


def test_a_server_of_kind_vllm_is_not_guessed_where_none_is_named(stage: Stage) -> None:
    """It does not say where it takes requests: the gateway waits."""
    stage.engine("--kind", "vllm")
    place = stage.gateway(up=False)
    with place.client() as client:
        assert client.get("/health").json()["engine"] == "waiting"


def test_the_upstreams_key_goes_to_it_and_nowhere_else(stage: Stage) -> None:
    """Without it the server refuses, and the gateway waits."""
    engine = stage.engine("--kind", "vllm", "--key", "sesame")
    place = stage.gateway(upstream=engine.endpoint, upstream_key="sesame")
    await_scores(place)
    with place.client() as client:
        assert_exact(picture(chunks(client, chat(actscope=True, max_tokens=3))))
        assert engine.state()["headers"]["Authorization"] == "Bearer sesame"
        assert client.get("/v1/actscope/recording").json()["recording"] is True
    keyless = stage.gateway(upstream=engine.endpoint, up=False)
    with keyless.client() as client:
        assert client.get("/health").json()["engine"] == "waiting"


def test_a_server_that_is_killed_and_comes_back_is_found_again(stage: Stage) -> None:
    """What is in flight ends with an error, then 503, then the new server on the same port serves, with its new ring."""
    engine = stage.engine("--kind", "vllm")
    port = engine.endpoint.rpartition(":")[2]
    place = stage.gateway(upstream=engine.endpoint)
    await_scores(place)
    with place.client() as client, place.client() as other:
        body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={"hold_after": 4})}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
            until(lambda: other.get(f"/v1/actscope/requests/{request}").json().get("tokens"))
            engine.process.kill()
            response.read()
        assert json.loads(lines_of(response)[-1].removeprefix("data: "))["error"]["code"] == "engine_failed"
        assert other.get(f"/v1/actscope/requests/{request}").json()["state"] == "failed"
        until(lambda: client.get("/health").json()["engine"] == "waiting")
        assert client.post("/v1/chat/completions", json=chat()).status_code == 503
        stage.engine("--kind", "vllm", "--port", port)
        await_engine(place)
        await_scores(place)
        assert_exact(picture(chunks(client, chat(actscope=True, max_tokens=6))))


# What a request asks of the engine


def test_options_travel_in_the_xargs_beside_the_clients_own(client: httpx.Client, vllm_engine: EngineProcess) -> None:
    asked = {"rows": "0,3", "full_prompt": True, "keep": "odd", "prompt": False}
    xargs = {"mine": 1, "actscope": json.dumps({"rows": True, "later": 1})}
    body = chat(max_tokens=1, actscope=asked, vllm_xargs=xargs)
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    found = sent(vllm_engine)["vllm_xargs"]
    assert found["mine"] == 1
    assert json.loads(found["actscope"]) == {"rows": "0,3", "full_prompt": True, "keep": "odd", "later": 1}
    assert client.post("/v1/chat/completions", json=chat(max_tokens=1, actscope=True)).status_code == 200
    assert "vllm_xargs" not in sent(vllm_engine)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"actscope": {"rows": 3}}, "actscope"),
        ({"actscope": {"rows": "layers.99.resid_post"}}, "actscope.rows"),
        ({"actscope": {"rows": "nonsense"}}, "actscope.rows"),
        ({"actscope": {"full_prompt": "yes"}}, "actscope"),
        ({"actscope": {"keep": True}}, "actscope"),
        ({"actscope": {"keep": "x" * 1001}}, "actscope"),
        ({"actscope": {"rows": True}, "vllm_xargs": [1]}, "vllm_xargs"),
        ({"actscope": {"rows": True}, "vllm_xargs": {"actscope": "{"}}, "vllm_xargs.actscope"),
        ({"actscope": {"rows": True}, "vllm_xargs": {"actscope": "[]"}}, "vllm_xargs.actscope"),
        ({"actscope": {"rows": True}, "vllm_xargs": {"actscope": 7}}, "vllm_xargs.actscope"),
    ],
)
def test_options_that_cannot_be_understood_are_named(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/chat/completions", json=chat(max_tokens=1, **fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_an_engine_that_records_nothing_says_so(place: Place) -> None:
    """Of another kind: `rows` and `keep` stand for a mark; `full_prompt` is what it does anyway."""
    with place.client() as client:
        assert (
            client.post("/v1/completions", json={"prompt": "x", "actscope": {"full_prompt": True}}).status_code == 200
        )
        for asked, code in (
            ({"keep": "x"}, "not_recording"),
            ({"rows": True}, "not_recording"),
            ({"rows": "0"}, "not_supported"),
        ):
            refused = client.post("/v1/completions", json={"prompt": "x", "actscope": asked})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


def test_the_commands_reach_the_control_side(vllm_stage: Stage, vllm_engine: EngineProcess) -> None:
    """`actscope probe list` and `actscope mark` ask where the card says, not at the endpoint that it does not name."""
    listed = vllm_stage.command("probe", "list", "--json")
    assert [p["id"] for p in json.loads(listed.stdout)] == ["danger", "joy"]
    marked = vllm_stage.command("mark", "somebody", "--json")
    assert json.loads(marked.stdout)[0]["request"] == "somebody"
    assert vllm_engine.state()["marks"][-1]["request"] == "somebody"
    assert isinstance(marked, subprocess.CompletedProcess)
