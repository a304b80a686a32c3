"""Real vLLM's other APIs through the gateway; and `actscope serve`'s own engine, which answers every request as vLLM does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import numpy as np
import openai
import pytest
from support.gateway.stage import TOKEN, Picture, Place, await_engine, await_scores
from support.vllm import reference
from support.vllm.bed import Configuration, Served, free_port
from support.vllm.pool import Engines
from support.waiting import until

from actscope.engines.builtin import NAME, model_path, probes_path
from actscope.engines.hf.api import fields, foreign_fields
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.loading import load
from actscope.engines.hf.server import Mailboxes, create_app
from actscope.frames import ListSink
from actscope.probes import load_probes

PROBES = load_probes(probes_path())
QUESTION = "Tell me about a fox in the snow"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
SCORES: dict[str, Any] = {"actscope": True}
TOLERANCE = 2e-3
CALLS = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 5}'}}]


@pytest.fixture(scope="module")
def served(engines: Engines) -> Iterator[Served]:
    environment = {"ACTSCOPE_PROBES": str(probes_path()), "ACTSCOPE_MODEL_NAME": NAME}
    yield engines.start(Served, Configuration(model_path(), environment=environment))
    engines.end()


@pytest.fixture(scope="module")
def place(served: Served) -> Iterator[Place]:
    """`actscope gateway` in front of it."""
    place = Place(f"http://127.0.0.1:{free_port()}", model=served.configuration.model.name)
    command = [sys.executable, "-m", "actscope", "gateway", "--upstream", served.url, "--token", TOKEN]
    environment = os.environ | {"ACTSCOPE_RUNTIME_DIR": str(served.runtime_directory)}
    process = subprocess.Popen([*command, "--port", place.url.rpartition(":")[2]], env=environment)
    try:
        until(lambda: _listens(place), 60)
        await_engine(place)
        await_scores(place)
        yield place
    finally:
        process.terminate()
        process.wait(20)


def _listens(place: Place) -> bool:
    try:
        return httpx.get(f"{place.url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def raw(place: Place) -> Iterator[httpx.Client]:
    with place.client(timeout=120) as client:
        yield client


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(place: Place) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=place.url, auth_token=place.token, api_key=None, max_retries=0) as client:
        yield client


def dumped(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_dump(exclude_unset=True)
    return found


def check(*payloads: dict[str, Any]) -> Picture:
    """Every position has every probe's score, and it is what transformers' rows give."""
    found = Picture()
    for payload in payloads:
        found.add(payload)
    assert found.final is not None
    ids = [found.ids[p] for p in sorted(found.ids)]
    assert found.final["present"] == found.final["computed"] == len(ids)
    rows = reference.resid_post(model_path(), ids)
    for probe in PROBES:
        expected = probe.score(rows[probe.info.layer])
        for position in range(len(ids)):
            cell = found.cells[position, probe.id]
            assert found.states[position, probe.id] == ("m" if cell is None else "c")
            if cell is not None:
                np.testing.assert_allclose(cell, expected[position], atol=TOLERANCE)
    return found


# The Responses API


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_its_scores_and_is_found_by_its_id(
    client: openai.OpenAI, raw: httpx.Client, place: Place, stream: bool
) -> None:
    options: Any = {"model": place.model, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
    if stream:
        events = [dumped(event) for event in client.responses.create(**options, stream=True, extra_body=SCORES)]
        answer = events[-1]["response"]
        check(*(event["actscope"] for event in events if "actscope" in event))
    else:
        answer = dumped(client.responses.create(**options, extra_body=SCORES))
    found = check(answer["actscope"])
    assert found.prompt_tokens == answer["usage"]["input_tokens"]
    assert len(found.ids) == answer["usage"]["total_tokens"] - 1
    looked_up = raw.get(f"/v1/actscope/requests/{answer['id']}").json()
    assert looked_up["state"] == "done"
    assert check({name: value for name, value in looked_up.items() if name != "state"}).cells == found.cells


def test_the_helper_for_streams_gives_the_response_with_its_scores(client: openai.OpenAI, place: Place) -> None:
    with client.responses.stream(
        model=place.model, input=QUESTION, max_output_tokens=12, temperature=0, extra_body=SCORES
    ) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        answer = stream.get_final_response()
    assert answer.output_text == said
    check(dumped(answer)["actscope"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_without_scores_is_vllms_own(served: Served, raw: httpx.Client, place: Place, stream: bool) -> None:
    """The same answer as from vLLM itself, but for ids and the clock; the id finds its scores, also of a direct request."""
    body = {"model": place.model, "input": QUESTION, "max_output_tokens": 12, "temperature": 0, "stream": stream}
    through = raw.post("/v1/responses", json=body)
    own = httpx.post(f"{served.url}/v1/responses", json=body, trust_env=False, timeout=60)
    assert anonymous(through.text) == anonymous(own.text)
    check(
        {
            k: v
            for k, v in raw.get(f"/v1/actscope/requests/{through.headers['x-request-id']}").json().items()
            if k != "state"
        }
    )
    direct = own.text.split('"id":"', 1)[1].split('"', 1)[0]
    until(lambda: raw.get(f"/v1/actscope/requests/{direct}").json().get("state") == "done")


def anonymous(text: str) -> str:
    """An answer without ids and times, and its pieces of text joined: how many tokens a delta has is a matter of the clock."""
    text = re.sub(r'"(id|item_id)":"[^"]*"', r'"\1":""', text)
    text = re.sub(r'"created_at":[\d.]+', '"created_at":0', text)
    said = "".join(re.findall(r'"delta":"((?:[^"\\]|\\.)*)"', text))
    text = re.sub(r'"sequence_number":\d+,?', "", text)
    text = re.sub(r'"cached_tokens":\d+|"cached_tokens_per_turn":\[\d+\]|"cache_write_tokens":\d+', "", text)
    return re.sub(r"(event: response.output_text.delta\n.*\n\n)+", "deltas\n", text) + said


def test_what_cannot_be_in_the_answer_is_refused(raw: httpx.Client, place: Place) -> None:
    refused = raw.post("/v1/responses", json={"model": place.model, "input": "x", "background": True} | SCORES)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_scores")
    assert "/v1/actscope/requests/" in refused.json()["error"]["message"]


# The Messages API


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_has_its_scores_and_is_found_by_its_id(
    claude: anthropic.Anthropic, raw: httpx.Client, place: Place, stream: bool
) -> None:
    options: Any = {"model": place.model, "messages": MESSAGES, "max_tokens": 12}
    options["extra_body"] = SCORES | {"temperature": 0}  # this client has no argument for it
    if stream:
        events = [dumped(event) for event in claude.messages.create(**options, stream=True)]
        assert {event["type"] for event in events if "actscope" in event} <= {"content_block_delta", "message_delta"}
        found = check(*(event["actscope"] for event in events if "actscope" in event))
        name = events[0]["message"]["id"]
    else:
        answer = dumped(claude.messages.create(**options))
        found, name = check(answer["actscope"]), answer["id"]
        assert len(found.ids) == sum(answer["usage"][n] for n in ("input_tokens", "output_tokens")) - 1
    looked_up = raw.get(f"/v1/actscope/requests/{name}").json()
    assert check({k: v for k, v in looked_up.items() if k != "state"}).cells == found.cells


def test_the_helper_for_streams_of_messages_is_not_confused(claude: anthropic.Anthropic, place: Place) -> None:
    with claude.messages.stream(model=place.model, messages=MESSAGES, max_tokens=12, extra_body=SCORES) as stream:
        said = "".join(stream.text_stream)
        whole: Any = stream.get_final_message()
    assert whole.content[0].text == said


def test_errors_of_messages_have_their_own_form(claude: anthropic.Anthropic, place: Place) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="no-such", messages=MESSAGES, max_tokens=2)
    with pytest.raises(anthropic.BadRequestError) as wrong:
        claude.messages.create(
            model=place.model, messages=MESSAGES, max_tokens=2, extra_body={"actscope": {"probes": ["no-such"]}}
        )
    body: Any = wrong.value.body
    assert body["type"] == "error"
    assert "no-such" in body["error"]["message"]


def test_one_model_can_be_retrieved(client: openai.OpenAI, place: Place) -> None:
    """vLLM itself has no such route."""
    assert client.models.retrieve(place.model).id == place.model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such")


# `actscope serve` beside vLLM


@pytest.fixture(scope="module")
def own() -> Iterator[Any]:
    """The hf engine with the same model."""
    from starlette.testclient import TestClient

    mailboxes = Mailboxes()
    engine = Engine(load(NAME, device="cpu"), sink=ListSink(), deliver=mailboxes.deliver).start()
    with TestClient(create_app(engine, mailboxes)) as client:
        yield client
    engine.close()


@pytest.mark.filterwarnings("ignore")  # of what vLLM imports
def test_every_field_of_vllm_is_honoured_refused_or_without_effect() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    theirs = {fields.ChatBody: ChatCompletionRequest, fields.CompletionBody: CompletionRequest}
    for body, their in (theirs | {fields.ResponsesBody: ResponsesRequest}).items():
        known = {*body.__struct_fields__, *foreign_fields.REFUSED, *foreign_fields.WITHOUT_EFFECT, *fields.ELSEWHERE}
        assert set(their.model_fields) <= known, body


def test_every_field_of_anthropic_is_honoured_refused_or_without_effect() -> None:
    from anthropic.types.beta.message_create_params import MessageCreateParamsBase as Beta
    from anthropic.types.message_create_params import MessageCreateParamsBase as Plain

    known = {*fields.MessagesBody.__struct_fields__, *foreign_fields.REFUSED, *foreign_fields.WITHOUT_EFFECT}
    assert {*Plain.__annotations__, *Beta.__annotations__} <= known


CHATS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 0},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 0, "return_tokens_as_token_ids": True},
    {"logprobs": 0, "top_logprobs": None, "stop": None, "seed": None, "max_completion_tokens": None, "tools": None},
    {"n": 1, "best_of": 1},
    {"echo": True},
    {"stop": ["now", "e"]},
    {"stop": "a", "include_stop_str_in_output": True},
    {"add_generation_prompt": False},
    {"messages": [*MESSAGES, {"role": "assistant", "content": "A fox ran"}], "continue_final_message": True,
     "add_generation_prompt": False},
    {"messages": [*MESSAGES, {"role": "assistant", "content": "A fox ran"}], "continue_final_message": True,
     "add_generation_prompt": False, "echo": True},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    {"messages": [*MESSAGES, {"role": "assistant", "content": None}, {"role": "user", "content": "And?"}]},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"reasoning_effort": "low"},
    {"return_prompt_text": True},
    {"prompt_logprobs": 1},
    {"user": "x", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
]  # fmt: skip
TEXTS: list[dict[str, Any]] = [
    {},
    {"logprobs": 0},
    {"logprobs": 3},
    {"prompt_logprobs": 0},
    {"echo": True},
    {"echo": True, "logprobs": 1},
    {"echo": True, "logprobs": 1, "max_tokens": 0},
    {"n": 1, "best_of": 1},
    {"prompt": ["Once upon", "The sea"]},
    {"prompt": [5, 6, 7]},
    {"stop": ["the"]},
    {"stop": ["the"], "include_stop_str_in_output": True},
    {"stop": ["the"], "min_tokens": 9},
    {"allowed_token_ids": [100, 200, 300]},
    {"logit_bias": {"300": 100, "301": -100}},
    {"bad_words": ["the", " fox"]},
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"truncate_prompt_tokens": 2},
    {"truncate_prompt_tokens": 2, "truncation_side": "right"},
    {"add_special_tokens": False},
    {"ignore_eos": False, "logit_bias": {"1": 100, "2": 100}},
    {"ignore_eos": False, "logit_bias": {"2": 100}, "skip_special_tokens": False},
    {"ignore_eos": False, "logit_bias": {"2": 100}, "skip_special_tokens": False, "include_stop_str_in_output": True},
    {"ignore_eos": False, "logit_bias": {"2": 100}, "min_tokens": 4},
    {"stop_token_ids": [300], "logit_bias": {"300": 100}},
    {"stop_token_ids": [300], "logit_bias": {"300": 100}, "min_tokens": 3},
    {"skip_special_tokens": False, "logit_bias": {"1": 100}},
]


@pytest.mark.parametrize("body", CHATS, ids=str)
def test_a_chat_is_answered_as_vllm_answers_it(own: Any, served: Served, body: dict[str, Any]) -> None:
    same(own, served, "/v1/chat/completions", {"messages": MESSAGES} | body)


@pytest.mark.parametrize("body", TEXTS, ids=str)
def test_a_completion_is_answered_as_vllm_answers_it(own: Any, served: Served, body: dict[str, Any]) -> None:
    same(own, served, "/v1/completions", {"prompt": "Once upon a time"} | body)


@pytest.mark.parametrize(
    "field", ["logprobs", "top_logprobs", "min_tokens", "allowed_token_ids", "n", "truncation_side"]
)
def test_what_vllm_refuses_is_refused(own: Any, served: Served, field: str) -> None:
    values = {
        "logprobs": "x",
        "top_logprobs": 4,
        "min_tokens": 99,
        "allowed_token_ids": [],
        "n": 0,
        "truncation_side": "up",
    }
    body = {"messages": MESSAGES, "max_tokens": 4, "temperature": 0, field: values[field]}
    theirs = httpx.post(f"{served.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    ours = own.post("/v1/chat/completions", json=body)
    assert (ours.status_code, theirs.status_code) == (400, 400)
    assert ours.json()["error"].keys() <= theirs.json()["error"].keys()


RESPONSES: list[dict[str, Any]] = [
    {},
    {"instructions": "Be kind."},
    {
        "input": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And?"},
        ]
    },
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"stop": ["the"], "include_stop_str_in_output": True},
    {
        "previous_response_id": None,
        "tools": [],
        "store": False,
        "truncation": "auto",
        "user": "x",
        "metadata": {"a": "b"},
    },
]
#: Facts of the answer that differ by design: vLLM says what it took as a maximum, names more of its own, and calls the choice of
#: tools "none" where there are none; OpenAI says "auto".
_OWN = {
    "tool_choice",
    "max_output_tokens",
    "text",
    "metadata",
    "service_tier",
    "store",
    "error",
    "created_at",
    "top_logprobs",
    "background",
}


@pytest.mark.parametrize("body", RESPONSES, ids=str)
def test_a_response_is_answered_as_vllm_answers_it(own: Any, served: Served, body: dict[str, Any]) -> None:
    asked = {"input": QUESTION, "max_output_tokens": 12, "temperature": 0, "ignore_eos": True} | body
    theirs = httpx.post(f"{served.url}/v1/responses", json=asked, trust_env=False, timeout=60).json()
    ours = own.post("/v1/responses", json=asked).json()
    for answer in (ours, theirs):
        answer["output"][0] |= {
            "id": "",
            "status": "",
        }  # vLLM calls a text that was cut short completed, OpenAI incomplete
        answer["usage"] = {n: answer["usage"][n] for n in ("input_tokens", "output_tokens", "total_tokens")}
    for name in plain(theirs).keys() - _OWN:
        alike(name, without_nulls(ours[name]), without_nulls(theirs[name]))


@pytest.mark.parametrize("body", [{}, {"system": "Be kind."}, {"stop_sequences": ["the"]}], ids=str)
def test_a_message_is_answered_as_vllm_answers_it(own: Any, served: Served, body: dict[str, Any]) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0} | body
    asked |= {"model": served.configuration.model.name}
    theirs = httpx.post(f"{served.url}/v1/messages", json=asked, trust_env=False, timeout=60).json()
    ours = own.post("/v1/messages", json=asked | {"model": NAME}).json()
    for answer in (ours, theirs):
        answer["usage"] = {name: answer["usage"][name] for name in ("input_tokens", "output_tokens")}
    alike("", plain(ours), plain(theirs))


def test_a_streamed_message_has_vllms_events(own: Any, served: Served) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stream": True}
    theirs = httpx.post(
        f"{served.url}/v1/messages",
        json=asked | {"model": served.configuration.model.name},
        trust_env=False,
        timeout=60,
    ).text
    ours = own.post("/v1/messages", json=asked | {"model": NAME}).text
    kinds = [list(dict.fromkeys(re.findall(r"^event: (.*)$", text, re.MULTILINE))) for text in (ours, theirs)]
    assert kinds[0] == kinds[1]


def test_a_streamed_response_has_vllms_events(own: Any, served: Served) -> None:
    """But for the last one, which is `response.incomplete` as with OpenAI; vLLM says `response.completed` of any."""
    asked = {"input": QUESTION, "max_output_tokens": 12, "temperature": 0, "ignore_eos": True, "stream": True}
    theirs = httpx.post(f"{served.url}/v1/responses", json=asked, trust_env=False, timeout=60).text
    ours = own.post("/v1/responses", json=asked).text
    kinds = [list(dict.fromkeys(re.findall(r"^event: (.*)$", text, re.MULTILINE))) for text in (ours, theirs)]
    assert kinds[0][:-1] == kinds[1][:-1]
    assert (kinds[0][-1], kinds[1][-1]) == ("response.incomplete", "response.completed")


def same(own: Any, served: Served, path: str, body: dict[str, Any]) -> None:
    asked = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": not body.get("echo")} | body
    theirs = httpx.post(f"{served.url}{path}", json=asked, trust_env=False, timeout=60)
    ours = own.post(path, json=asked)
    assert theirs.status_code == ours.status_code == 200, (theirs.text, ours.text)
    alike("", plain(ours.json()), plain(theirs.json(), unasked="prompt_logprobs" not in body))


def plain(answer: dict[str, Any], *, unasked: bool = False) -> dict[str, Any]:
    """An answer without ids, times and names, and without fields that are null or vLLM's defaults.

    unasked: without `prompt_logprobs`, which vLLM adds to an echo.
    """
    for part in [answer, *answer.get("choices", ())] if unasked else []:
        part.pop("prompt_logprobs", None)
    for name in ("id", "created", "model", "system_fingerprint"):
        answer.pop(name, None)
    found: dict[str, Any] = without_nulls(answer)
    return found


#: Lists that vLLM leaves out, or sends as null, where OpenAI sends empty ones.
_EMPTY = ("annotations", "logprobs")


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None and not (k in _EMPTY and v == [])}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def alike(where: str, ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name in theirs:
            alike(f"{where}.{name}", ours[name], theirs[name])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            alike(f"{where}[{i}]", one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=5e-3), where
    else:
        assert ours == theirs, where
