"""The Responses API of `actscope serve`, with real clients: scores in the answer, and look-up by the id that the client has."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.gateway.stage import Picture, Place, Stage, picture
from support.servers import serving
from support.waiting import until

from actscope.engines.builtin import NAME, probes_path

QUESTION = "Tell me about a fox in the snow"
SCORES: dict[str, Any] = {"actscope": True}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving() as running:
        yield running.place


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        yield client


@pytest.fixture
def plain(place: Place) -> Iterator[httpx.Client]:
    with place.client() as client:
        yield client


def dumped(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_dump(exclude_unset=True)
    return found


def drawn(*payloads: dict[str, Any] | None) -> Picture:
    """What the payloads of one answer come to."""
    whole = Picture()
    for payload in payloads:
        if payload is not None:
            whole.add(payload)
    return whole


def of_chat(client: openai.OpenAI, place: Place) -> Picture:
    """The same prompt as a chat completion: its tokens and scores."""
    answer = client.chat.completions.create(
        model=place.model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=16,
        temperature=0,
        extra_body=SCORES,
    )
    return picture([dumped(answer)])


def same_as_chat(found: Picture, chat: Picture) -> None:
    """Every position but the last, whose token is never fed back."""
    assert found.prompt_tokens == chat.prompt_tokens
    assert [found.ids[p] for p in sorted(found.ids)] == [chat.ids[p] for p in sorted(chat.ids)][:-1]
    for key, cell in found.cells.items():
        assert cell == (None if chat.cells[key] is None else pytest.approx(chat.cells[key], abs=1e-3))
    assert found.final is not None
    assert found.final["computed"] == found.final["present"] == len(chat.ids) - 1


def test_a_response_has_the_scores_of_the_same_chat(client: openai.OpenAI, place: Place) -> None:
    answer = client.responses.create(
        model=place.model, input=QUESTION, max_output_tokens=16, temperature=0, extra_body=SCORES
    )
    found = dumped(answer)
    assert answer.output_text
    assert answer.usage is not None
    same_as_chat(drawn(found["actscope"]), of_chat(client, place))
    assert found["actscope"]["request"] == f"{answer.id}_0"


def test_a_streamed_response_has_them_in_its_deltas_and_all_of_them_at_the_end(
    client: openai.OpenAI, place: Place
) -> None:
    stream = client.responses.create(
        model=place.model, input=QUESTION, max_output_tokens=16, temperature=0, stream=True, extra_body=SCORES
    )
    events = [dumped(event) for event in stream]
    with_scores = [event for event in events if "actscope" in event]
    assert {event["type"] for event in with_scores} == {"response.output_text.delta", events[-1]["type"]}
    assert len(with_scores) >= 2
    chat = of_chat(client, place)
    same_as_chat(drawn(*(event["actscope"] for event in with_scores)), chat)
    same_as_chat(drawn(events[-1]["response"]["actscope"]), chat)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_the_helper_for_streams_gives_the_response_with_its_scores(client: openai.OpenAI, place: Place) -> None:
    with client.responses.stream(model=place.model, input=QUESTION, temperature=0, extra_body=SCORES) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        answer = stream.get_final_response()
    assert answer.output_text == said
    assert answer.status == "completed"
    assert drawn(dumped(answer)["actscope"]).final is not None


async def test_the_asynchronous_client_gets_the_same(place: Place) -> None:
    async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        answer = await client.responses.create(
            model=place.model, input=QUESTION, max_output_tokens=4, temperature=0, extra_body=SCORES
        )
    assert answer.status == "incomplete"
    assert drawn(dumped(answer)["actscope"]).final is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_without_scores_is_plain_and_can_be_looked_up_by_its_id(
    client: openai.OpenAI, plain: httpx.Client, place: Place, stream: bool
) -> None:
    body = {"model": place.model, "input": QUESTION, "max_output_tokens": 16, "temperature": 0, "stream": stream}
    answer = plain.post("/v1/responses", json=body)
    assert '"actscope":' not in answer.text
    response = answer.headers["x-request-id"]
    assert response.startswith("resp_")
    assert f'"id":"{response}"' in answer.text
    found = plain.get(f"/v1/actscope/requests/{response}").json()
    assert found["state"] == "done"
    same_as_chat(drawn(found), of_chat(client, place))


def test_a_conversation_is_sent_whole(client: openai.OpenAI, plain: httpx.Client, place: Place) -> None:
    """Messages, instructions and calls of functions are the prompt that the chat has."""
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"x": 5}'},
        {"type": "function_call_output", "call_id": "1", "output": "seen"},
    ]
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 5}'}}]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    options = {"model": place.model, "temperature": 0, "actscope": True}
    response = plain.post(
        "/v1/responses", json=options | {"input": items, "instructions": "be kind", "max_output_tokens": 1}
    )
    chat = plain.post("/v1/chat/completions", json=options | {"messages": messages, "max_tokens": 1})
    prompt = response.json()["actscope"]["tokens"]["ids"]
    assert prompt == chat.json()["choices"][0]["actscope"]["tokens"]["ids"][: len(prompt)]


def test_logprobs_are_included_on_request(client: openai.OpenAI, place: Place) -> None:
    answer = client.responses.create(
        model=place.model,
        input=QUESTION,
        max_output_tokens=4,
        temperature=0,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    logprobs = dumped(answer)["output"][0]["content"][0]["logprobs"]
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2] * 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"background": True, "actscope": True}, "actscope"),
        ({"tools": [{"type": "function", "name": "look", "parameters": {}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"text": {"verbosity": "low"}}, "text"),
        ({"include": ["no.such"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"truncation": "some"}, "truncation"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 10**6}, "messages"),
        ({"actscope": {"probes": ["no-such"]}}, "actscope.probes"),
        ({"model": "no-such"}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(plain: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = plain.post("/v1/responses", json={"input": QUESTION} | fields)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_cancelled_stream_ends_as_an_incomplete_response(
    client: openai.OpenAI, plain: httpx.Client, place: Place
) -> None:
    stream = client.responses.create(
        model=place.model, input=QUESTION, stream=True, extra_body=SCORES | {"ignore_eos": True}
    )
    events = []
    for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta" and len(events) < 8:
            first: Any = events[0]
            assert plain.delete(f"/v1/actscope/requests/{first.response.id}").json()["state"] == "aborted"
    last: Any = events[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")
    assert last.response.id == first.response.id
    assert plain.get(f"/v1/actscope/requests/{first.response.id}").json()["state"] == "aborted"


# The Messages API


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_a_message_has_the_scores_of_the_same_chat(client: openai.OpenAI, plain: httpx.Client, place: Place) -> None:
    body = {
        "model": place.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "temperature": 0,
    }
    whole = plain.post("/v1/messages", json=body | SCORES).json()
    events = events_of(plain.post("/v1/messages", json=body | SCORES | {"stream": True}))
    chat = of_chat(client, place)
    same_as_chat(drawn(whole["actscope"]), chat)
    same_as_chat(drawn(*(event.get("actscope") for event in events)), chat)
    same_as_chat(drawn(plain.get(f"/v1/actscope/requests/{whole['id']}").json()), chat)
    said = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert said == whole["content"][0]["text"] != ""
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    assert (events[-2]["delta"]["stop_reason"], whole["stop_reason"]) == ("max_tokens", "max_tokens")


def test_a_conversation_of_messages_is_sent_whole(plain: httpx.Client, place: Place) -> None:
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {"x": 5}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "seen"}]}
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 5}'}}]
    messages = [
        {"role": "system", "content": "be kind"},
        turns[0],
        {"role": "assistant", "content": "hi", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
        {"role": "user", "content": "and?"},
    ]
    options = {"model": place.model, "temperature": 0, "actscope": True, "max_tokens": 1}
    message = plain.post("/v1/messages", json=options | {"messages": turns, "system": "be kind"}).json()
    chat = plain.post("/v1/chat/completions", json=options | {"messages": messages}).json()
    prompt = message["actscope"]["tokens"]["ids"]
    assert prompt == chat["choices"][0]["actscope"]["tokens"]["ids"][: len(prompt)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"name": "look", "input_schema": {}}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"actscope": {"probes": ["no-such"]}}, "actscope.probes"),
    ],
)
def test_what_a_message_cannot_have_is_refused_by_name(plain: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2} | fields
    answer = plain.post("/v1/messages", json=body)
    assert (answer.status_code, answer.json()["type"], answer.json()["error"]["param"]) == (400, "error", param)


def test_one_model_can_be_retrieved(client: openai.OpenAI, place: Place) -> None:
    assert client.models.retrieve(place.model).id == place.model
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("no/such")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/nothing", 404), ("PUT", "/v1/completions", 405)],
)
def test_unknown_paths_and_methods_are_openai_errors(plain: httpx.Client, method: str, path: str, status: int) -> None:
    answer = plain.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_node_client(place: Place) -> None:
    """openai-node: stream, helper, whole response and error, with scores."""
    project = Path(__file__).parent / "node"
    if not (project / "node_modules" / "openai").is_dir():
        pytest.skip("openai-node is not installed: `npm ci` in tests/gateway/node")
    command = ["node", str(project / "responses.mjs"), place.url, place.token, place.model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == found["helperText"] == found["whole"]["output_text"] != ""
    streamed = drawn(*(event.get("actscope") for event in found["events"]))
    assert streamed.ids == drawn(found["whole"]["actscope"]).ids
    assert streamed.final is not None
    assert found["errorParam"] == "previous_response_id"


def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error(stage: Stage) -> None:
    """A real engine, killed: the client raises, and the log of the response has failed."""
    settings = {"model": NAME, "card_id": "00c0ffee00c0ffee", "owned": False, "probes": [str(probes_path())]}
    engine = stage._start("-m", "actscope.engines.hf", json.dumps(settings))
    place = stage.gateway(up=False)
    with place.client() as plain:
        until(lambda: plain.get("/health").json()["engine"] == "up", 240)
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        stream = client.responses.create(
            model=NAME, input=QUESTION, stream=True, extra_body=SCORES | {"ignore_eos": True}
        )
        first: Any = next(iter(stream))
        engine.kill()
        with pytest.raises(openai.APIError) as broken:
            for _ in stream:
                pass
    assert broken.value.code == "engine_failed"
    with place.client() as plain:
        found = plain.get(f"/v1/actscope/requests/{first.response.id}").json()
    assert found["state"] == "failed"
