"""Fields of completion requests: every one is honoured, refused by name, or known to change nothing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as OpenAIChat
from openai.types.completion_create_params import CompletionCreateParamsBase as OpenAIText
from openai.types.responses.response_create_params import ResponseCreateParamsBase as OpenAIResponses
from support.hf.tiny import tiny
from transformers import GenerationConfig

from actscope.engines.hf.api import fields
from actscope.engines.hf.api.fields import ChatBody, CompletionBody, ResponsesBody
from actscope.engines.hf.api.foreign_fields import EVEN_FALSE, REFUSED, WITHOUT_EFFECT
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.server import Mailboxes, create_app
from actscope.frames import ListSink

HELLO = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
#: A template that writes everything that a chat may have.
TEMPLATE = (
    "{% for t in tools or [] %}[tool {{ t.function.name }}]{% endfor %}"
    "{% for d in documents or [] %}[doc {{ d.text }}]{% endfor %}"
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}[call {{ c.function.name }} {{ c.function.arguments.x }}]{% endfor %}|{% endfor %}"
    "{% if mood %}({{ mood }}){% endif %}{% if reasoning_effort %}({{ reasoning_effort }}){% endif %}"
    "{% if enable_thinking %}[thinks]{% endif %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALLS = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 5}'}}]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    found = tiny("llama")
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture
async def client(loaded: LoadedModel) -> AsyncIterator[httpx.AsyncClient]:
    mailboxes = Mailboxes()
    engine = Engine(loaded, sink=ListSink(), deliver=mailboxes.deliver).start()
    transport = httpx.ASGITransport(create_app(engine, mailboxes))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        yield client
    engine.close()


async def chat(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO} | GREEDY | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def text(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json={"prompt": "hello"} | GREEDY | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


async def prompt_of(client: httpx.AsyncClient, **body: Any) -> str:
    """The text that the model is given."""
    found = await chat(client, return_prompt_text=True, max_tokens=1, **body)
    return str(found["prompt_text"])


def logits_of(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].float()  # type: ignore[no-any-return]


def greedy(loaded: LoadedModel, prompt: list[int], n: int, change: Any = lambda logits, made: logits) -> list[int]:
    """The most likely tokens, step by step, by transformers alone."""
    made: list[int] = []
    for _ in range(n):
        made.append(int(change(logits_of(loaded, prompt + made)[-1].clone(), made).argmax()))
    return made


# Which fields


@pytest.mark.parametrize(
    ("body", "theirs"), [(ChatBody, OpenAIChat), (CompletionBody, OpenAIText), (ResponsesBody, OpenAIResponses)]
)
def test_every_field_of_openai_is_honoured_refused_or_without_effect(body: Any, theirs: Any) -> None:
    known = {*body.__struct_fields__, *REFUSED, *WITHOUT_EFFECT, *fields.ELSEWHERE}
    assert set(theirs.__annotations__) <= known


def test_no_field_is_in_two_lists() -> None:
    honoured = {*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__}
    assert not honoured & REFUSED.keys()
    assert not WITHOUT_EFFECT.keys() & REFUSED.keys()


def test_every_field_of_transformers_generation_config_is_honoured_refused_or_without_effect() -> None:
    config: Any = GenerationConfig
    theirs = {name for name in vars(config()) if not name.startswith("_")}
    assert theirs <= {*REFUSED, *WITHOUT_EFFECT, *fields.ELSEWHERE}


def test_the_page_of_the_api_lists_what_is_refused_and_what_has_no_effect() -> None:
    """When this fails: `make tables`."""
    root = Path(__file__).parents[3]
    asked = [sys.executable, str(root / "scripts/api_tables.py"), "--check"]
    assert subprocess.run(asked, capture_output=True, timeout=120, check=False).returncode == 0, "run make tables"
    page = (root / "docs/openai-api.md").read_text()
    refused = page.partition("<!-- refused -->")[2].partition("<!-- /refused -->")[0]
    without = page.partition("<!-- without -->")[2].partition("<!-- /without -->")[0]
    for names, part in ((REFUSED, refused), (WITHOUT_EFFECT, without)):
        assert set(re.findall(r"`(\w+)`(?=[,. ])", part)) >= set(names)
    for body in (ChatBody, CompletionBody):
        assert all(f"`{name}`" in page for name in body.__struct_fields__)


@pytest.mark.parametrize("name", sorted(REFUSED))
async def test_what_cannot_be_honoured_is_refused_by_name_and_null_is_absence(
    client: httpx.AsyncClient, name: str
) -> None:
    meant: tuple[Any, ...] = ("x", 7, {"a": 1})
    for value in meant:
        answer = await client.post("/v1/chat/completions", json={"messages": HELLO, name: value} | GREEDY)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, name)
        assert "eave it out" in error["message"]
    meant_nothing: tuple[Any, ...] = (None, [], {}, *REFUSED[name][1])
    meant_nothing += () if name in EVEN_FALSE else (False,)
    for value in meant_nothing:
        await chat(client, **{name: value}, max_tokens=1)


@pytest.mark.parametrize(("path", "body"), [("chat/completions", ChatBody), ("completions", CompletionBody)])
@pytest.mark.parametrize("stream", [None, False])
async def test_null_is_the_absence_of_any_field(client: httpx.AsyncClient, path: str, body: Any, stream: Any) -> None:
    needed: dict[str, Any] = {"messages": HELLO} if body is ChatBody else {"prompt": "hello"}
    wanted = needed | {"temperature": 0, "max_tokens": 6, "stream": stream}
    nulls = dict.fromkeys([*body.__struct_fields__, *REFUSED, *WITHOUT_EFFECT])
    whole = (await client.post(f"/v1/{path}", json=nulls | wanted)).json()
    plain = (await client.post(f"/v1/{path}", json=wanted)).json()
    assert whole["choices"] == plain["choices"]


async def test_an_unknown_field_is_accepted_and_told_in_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await chat(client, **{"no_such_field": 5}, max_tokens=1)
    assert "no_such_field" in caplog.text


@pytest.mark.parametrize("name", sorted(EVEN_FALSE))
async def test_a_switch_that_is_off_is_a_wish_too(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO, name: False} | GREEDY)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


# Messages


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}}, "tool_calls"),
        ({"role": "assistant", "content": "a", "reasoning_content": "secret"}, "reasoning_content"),
        ({"role": "assistant", "content": "a", "prefix": True}, "continue_final_message"),
        ({"role": "assistant", "content": None, "refusal": "no"}, "content"),
        ({"role": "assistant", "content": "a", "audio": {"id": "1"}}, "audio"),
        ({"role": "user", "content": "a", "unheard_of": 1}, "unheard_of"),
    ],
)
async def test_a_key_of_a_message_that_the_prompt_would_not_contain_is_refused_by_name(
    client: httpx.AsyncClient, message: dict[str, Any], named: str
) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": [*HELLO, message, *HELLO]} | GREEDY)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages")
    assert error["message"].startswith("messages[1].") and named in error["message"]
    await chat(client, messages=[{**message, **dict.fromkeys(set(message) - {"role", "content"})}, *HELLO])


@pytest.mark.parametrize("given", ["reasoning", "reasoning_content"])
async def test_a_key_that_the_template_reads_is_in_the_prompt(
    client: httpx.AsyncClient, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    written = "{% for m in messages %}{{ m.content }}({{ m.reasoning_content }})|{% endfor %}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", written)
    history = [{"role": "assistant", "content": "a", given: "why"}]
    assert await prompt_of(client, messages=history) == "a(why)|"


async def test_labels_of_messages_are_accepted(client: httpx.AsyncClient) -> None:
    labelled = {"role": "user", "content": "a", "name": "bob", "id": "1", "cache_control": {"type": "ephemeral"}}
    assert await prompt_of(client, messages=[labelled]) == "<s>user: a|<s>assistant: "


async def test_a_role_that_the_template_would_write_as_another_is_refused(
    client: httpx.AsyncClient, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [{"role": "function", "name": "look", "content": "sunny"}]
    assert "<s>function: sunny" in await prompt_of(client, messages=said)
    written = "{% for m in messages %}{% if m.role == 'assistant' %}A{% else %}U{% endif %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", written)
    answer = await client.post("/v1/chat/completions", json={"messages": said} | GREEDY)
    assert answer.status_code == 400
    assert "'function'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("messages", {"tool_choice": {"type": "any"}}, "tool_choice"),
        ("messages", {"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers"),
        ("messages", {"output_format": {"type": "json_schema", "schema": {}}}, "output_format"),
        ("messages", {"messages": [*HELLO, {"role": "assistant", "content": "Sure,"}]}, "messages"),
        ("messages", {"messages": [{"role": "user", "content": "a", "prefix": True}]}, "messages"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "a", "is_error": True}]}]},
            "messages",
        ),
        ("messages", {"thinking": {"type": "disabled", "budget_tokens": 2048}}, "thinking"),
        ("messages", {"output_config": {"effort": "low", "unheard_of": 1}}, "output_config"),
        ("messages", {"output_config": {"effort": 3}}, "output_config"),
        ("messages", {"tool_choice": {"type": "none"}, "tools": [{"type": "web_search", "name": "w"}]}, "tools"),
        ("responses", {"input": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}, "input"),
        ("responses", {"input": "a", "reasoning": {"context": "all_turns"}}, "reasoning"),
        ("responses", {"input": "a", "reasoning": {"max_tokens": 5}}, "reasoning"),
        ("responses", {"input": "a", "reasoning": {"effort": ["low"]}}, "reasoning"),
        ("responses", {"input": "a", "text": {"unheard_of": 1}}, "text"),
    ],
)
async def test_the_other_apis_refuse_by_name_too(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    needed: dict[str, Any] = {"messages": HELLO, "max_tokens": 2} if path == "messages" else {"max_output_tokens": 2}
    answer = await client.post(f"/v1/{path}", json=needed | body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.get("param", param) == param and error["message"].startswith((param, f"{param}["))


async def test_what_labels_a_request_is_accepted_by_the_messages_api(client: httpx.AsyncClient) -> None:
    labels = {"metadata": {"user_id": "x"}, "service_tier": "auto", "tool_choice": {"type": "auto"}}
    block = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    body = {"messages": [{"role": "user", "content": [block]}], "max_tokens": 2} | labels
    assert (await client.post("/v1/messages", json=body)).status_code == 200


async def test_an_unknown_option_of_a_stream_is_refused_and_padding_is_accepted(client: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "stream": True} | GREEDY
    unknown = await client.post("/v1/chat/completions", json=body | {"stream_options": {"unheard_of": 1}})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "stream_options")
    assert "unheard_of" in unknown.json()["error"]["message"]
    padded = await client.post("/v1/chat/completions", json=body | {"stream_options": {"include_obfuscation": True}})
    assert padded.status_code == 200


async def test_what_the_messages_api_says_of_thinking_and_tools_reaches_the_template_as_in_vllm(
    client: httpx.AsyncClient,
) -> None:
    tool = {"name": "look", "description": "d", "input_schema": {"type": "object"}}
    body = {"messages": HELLO, "max_tokens": 2, "thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}
    told = await client.post("/v1/messages", json=body | {"tools": [tool], "tool_choice": {"type": "none"}})
    same = await chat(client, messages=HELLO, tools=TOOLS, tool_choice="none", reasoning_effort="none", max_tokens=2)
    assert told.json()["usage"]["input_tokens"] == same["usage"]["prompt_tokens"]


async def test_without_thinking_is_low_effort_where_the_template_takes_none_for_another(
    client: httpx.AsyncClient, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM does it: `low`, if `none` gives the prompt of another effort."""
    written = "{{ {'low': 'abc', 'medium': 'abcde'}.get(reasoning_effort, 'abcdefgh') }}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", written)
    body = {"messages": HELLO, "max_tokens": 2, "thinking": {"type": "disabled"}}
    low = await chat(client, messages=HELLO, reasoning_effort="low", max_tokens=2)
    most = await chat(client, messages=HELLO, reasoning_effort="max", max_tokens=2)
    found = (await client.post("/v1/messages", json=body)).json()["usage"]["input_tokens"]
    assert found == low["usage"]["prompt_tokens"] < most["usage"]["prompt_tokens"]


# The prompt


async def test_a_history_of_tool_calls_reaches_the_model(client: httpx.AsyncClient) -> None:
    history = [*HELLO, {"role": "assistant", "content": None, "tool_calls": CALLS}]
    history.append({"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "seen"}]})
    assert (await prompt_of(client, messages=history)).endswith(
        "<s>assistant: [call look 5]|<s>tool: seen|<s>assistant: "
    )


async def test_calls_that_the_template_does_not_write_are_appended_to_the_text(
    client: httpx.AsyncClient, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}|{% endfor %}")
    history = [{"role": "assistant", "content": None, "tool_calls": CALLS}]
    assert await prompt_of(client, messages=history) == '{"name":"look","arguments":{"x":5}}|'


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ({"chat_template_kwargs": {"mood": "glad"}}, "(glad)<s>assistant: "),
        ({"reasoning_effort": "low"}, "(low)[thinks]<s>assistant: "),
        ({"reasoning_effort": "none"}, "(none)<s>assistant: "),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "(none)[thinks]<s>assistant: ",
        ),
        ({"add_generation_prompt": False}, "<s>user: hello|"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "So it"}], "continue_final_message": True},
            "<s>assistant: So it",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "<s>user: |<s>assistant: "),
        ({"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]}, "a\nb|<s>assistant: "),
    ],
)
async def test_the_prompt_is_what_the_template_makes_of_the_request(
    client: httpx.AsyncClient, body: dict[str, Any], end: str
) -> None:
    assert (await prompt_of(client, **body)).endswith(end)


async def test_tools_that_may_not_be_called_and_documents_are_in_the_prompt(client: httpx.AsyncClient) -> None:
    found = await prompt_of(client, tools=TOOLS, tool_choice="none", documents=[{"text": "d"}])
    assert found.startswith("[tool look][doc d]")
    refused = await client.post("/v1/chat/completions", json={"messages": HELLO, "tools": TOOLS})
    assert refused.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(("side", "kept"), [(None, slice(-3, None)), ("left", slice(-3, None)), ("right", slice(0, 3))])
async def test_a_prompt_is_truncated_on_the_side_that_is_asked_for(
    client: httpx.AsyncClient, side: str | None, kept: slice
) -> None:
    found = await text(client, prompt=list(range(20)), truncate_prompt_tokens=3, truncation_side=side)
    assert found["prompt_token_ids"] == list(range(20))[kept]
    room = await text(client, prompt=[5] * 600, truncate_prompt_tokens=-1)
    assert len(room["prompt_token_ids"]) == 500


async def test_special_tokens_are_added_where_they_are_asked_for(
    client: httpx.AsyncClient, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def tokenize(self: object, text: str, **options: Any) -> dict[str, list[int]]:
        seen.append(options)
        return {"input_ids": [1]}

    monkeypatch.setattr(type(loaded.tokenizer), "__call__", tokenize)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": HELLO}),
        ("completions", {"prompt": "a"}),
    ]
    for path, body in bodies:
        for value in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}):
            await client.post(f"/v1/{path}", json=body | GREEDY | value)
    assert [options["add_special_tokens"] for options in seen] == [False, True, False, True, True, False]


# The tokens


async def test_only_allowed_tokens_are_drawn(client: httpx.AsyncClient, loaded: LoadedModel) -> None:
    allowed = [65, 70, 75]

    def only(logits: torch.Tensor, made: list[int]) -> torch.Tensor:
        kept = torch.full_like(logits, -math.inf)
        kept[allowed] = logits[allowed]
        return kept

    found = await text(client, allowed_token_ids=allowed)
    assert found["token_ids"] == greedy(loaded, found["prompt_token_ids"], 12, only)
    sampled = await text(client, allowed_token_ids=allowed, temperature=2.0, seed=1)
    assert set(sampled["token_ids"]) <= set(allowed)
    assert len(set(sampled["token_ids"])) > 1


async def test_a_bias_moves_the_logits(client: httpx.AsyncClient, loaded: LoadedModel) -> None:
    def biased(logits: torch.Tensor, made: list[int]) -> torch.Tensor:
        logits[65] += 0.4
        logits[70] -= 100
        return logits

    found = await text(client, logit_bias={"65": 0.4, "70": -1000})
    assert found["token_ids"] == greedy(loaded, found["prompt_token_ids"], 12, biased)


async def test_bad_words_do_not_appear(client: httpx.AsyncClient, loaded: LoadedModel) -> None:
    """A word of one token never; one of several tokens not as a whole."""
    a, b = (loaded.tokenizer._tokenizer.token_to_id(letter) for letter in "ab")
    bias = {str(a): 100, str(b): 99}
    assert (await text(client, logit_bias=bias))["token_ids"] == [a] * 12
    assert (await text(client, logit_bias=bias, bad_words=["a"]))["token_ids"] == [b] * 12
    assert (await text(client, logit_bias=bias, bad_words=["aa"]))["token_ids"] == [a, b] * 6


@pytest.mark.parametrize("ending", ["eos", "stop_token_ids"])
async def test_an_answer_has_at_least_min_tokens(client: httpx.AsyncClient, ending: str) -> None:
    body: dict[str, Any] = {"logit_bias": {"257": 100}, "ignore_eos": ending != "eos"}
    body |= {"stop_token_ids": [257]} if ending != "eos" else {}
    early, late = [await text(client, **body, min_tokens=n) for n in (0, 5)]
    assert early["token_ids"] == [257]
    assert len(late["token_ids"]) == 6
    assert late["token_ids"][-1] == 257
    assert [early["stop_reason"], late["stop_reason"]] == [None if ending == "eos" else 257] * 2


async def test_exclusions_that_leave_no_token_are_an_error_and_not_a_token(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "allowed_token_ids": [257], "min_tokens": 2} | GREEDY | {"ignore_eos": False}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 500
    assert "allowed_token_ids" in answer.json()["error"]["message"]


# The text


async def test_the_stop_string_is_in_the_text_only_if_asked_for(client: httpx.AsyncClient) -> None:
    whole = (await text(client, logit_bias={"65": 100}))["text"]
    stop = whole[3:5]
    for includes, end in ((False, 0), (True, len(stop))):
        found = await text(client, logit_bias={"65": 100}, stop=[stop], include_stop_str_in_output=includes)
        assert found["text"] == whole[: whole.find(stop) + end]
        assert (found["finish_reason"], found["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize(("includes", "skips", "said"), [(False, False, ""), (True, False, "</s>"), (True, True, "")])
async def test_the_token_that_ends_an_answer_has_text_only_if_both_fields_say_so(
    client: httpx.AsyncClient, includes: bool, skips: bool, said: str
) -> None:
    body = {"logit_bias": {"257": 100}, "ignore_eos": False}
    found = await text(client, include_stop_str_in_output=includes, skip_special_tokens=skips, **body)
    assert found["text"] == said


async def test_special_tokens_have_text_if_asked_for(client: httpx.AsyncClient) -> None:
    for skips, said in ((True, ""), (False, "<s><s>")):
        found = await text(client, logit_bias={"256": 100}, skip_special_tokens=skips, max_tokens=2)
        assert found["text"] == said


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_begins_with_the_prompt(client: httpx.AsyncClient, stream: bool) -> None:
    own = (await text(client))["text"]
    body = {"prompt": "hello", "echo": True, "stream": stream} | GREEDY
    assert said(await client.post("/v1/completions", json=body)) == "hello" + own
    body |= {"max_tokens": 0}
    assert said(await client.post("/v1/completions", json=body)) == "hello"
    messages = [*HELLO, {"role": "assistant", "content": "So it"}]
    chatty = {"messages": messages, "echo": True, "stream": stream, "continue_final_message": True} | GREEDY
    assert said(await client.post("/v1/chat/completions", json=chatty)).startswith("So it")


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    if not answer.text.startswith("data:"):
        return [answer.json()]
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def said(answer: httpx.Response) -> str:
    choices = [c for chunk in chunks_of(answer) for c in chunk["choices"]]
    return "".join(c.get("text", "") + (c.get("delta") or c.get("message") or {}).get("content", "") for c in choices)


async def test_token_counts_come_with_every_chunk_if_asked_for(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": HELLO, "stream": True, "stream_options": options} | GREEDY
    counts = [c["usage"]["completion_tokens"] for c in chunks_of(await client.post("/v1/chat/completions", json=body))]
    assert counts == [1, *range(1, 13), 12]


# Log-probabilities


async def test_logprobs_are_those_of_the_model(client: httpx.AsyncClient, loaded: LoadedModel) -> None:
    """Of the drawn token and of the most likely ones; a temperature and a bias do not change them."""
    sampling = {"temperature": 1.5, "seed": 3, "logit_bias": {"65": 1.0}}
    found = await chat(client, logprobs=True, top_logprobs=3, **sampling)
    ids, prompt = found["choices"][0]["token_ids"], found["prompt_token_ids"]
    expected = torch.log_softmax(logits_of(loaded, prompt + ids), -1)[len(prompt) - 1 :]
    for i, entry in enumerate(found["choices"][0]["logprobs"]["content"]):
        top = expected[i].topk(3)
        assert entry["logprob"] == pytest.approx(float(expected[i][ids[i]]), abs=1e-3)
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx(top.values.tolist(), abs=1e-3)
        tokens = [loaded.tokenizer._tokenizer.decode([t], skip_special_tokens=False) for t in top.indices.tolist()]
        assert [one["token"] for one in entry["top_logprobs"]] == tokens


async def test_a_stream_has_the_logprobs_of_the_whole_answer(client: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 2} | GREEDY
    whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["logprobs"]["content"]
    stream = chunks_of(await client.post("/v1/chat/completions", json=body | {"stream": True}))
    parts = [c["logprobs"]["content"] for chunk in stream for c in chunk["choices"] if c.get("logprobs")]
    assert [entry for part in parts for entry in part] == whole
    plain = (await client.post("/v1/chat/completions", json=body | {"logprobs": True, "top_logprobs": 0})).json()
    assert all(entry["top_logprobs"] == [] for entry in plain["choices"][0]["logprobs"]["content"])
    none = (await client.post("/v1/chat/completions", json=body | {"logprobs": False, "top_logprobs": 0})).json()
    assert none["choices"][0]["logprobs"] is None


async def test_logprobs_0_of_a_text_are_those_of_its_own_tokens(client: httpx.AsyncClient) -> None:
    found = (await text(client, logprobs=0))["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 12
    assert all(len(top) == 1 for top in found["top_logprobs"])
    shown = (await text(client, logprobs=0, return_tokens_as_token_ids=True))["logprobs"]["tokens"]
    assert all(token.startswith("token_id:") for token in shown)


@pytest.mark.parametrize("n_prompt", [1, 7, 300])
@pytest.mark.parametrize("tokens", [0, 3])
async def test_an_echo_has_the_logprobs_of_the_prompt(
    client: httpx.AsyncClient, loaded: LoadedModel, n_prompt: int, tokens: int
) -> None:
    """As evaluation harnesses read them; a prompt of 300 tokens runs in several passes."""
    prompt = [i * 7 % 256 for i in range(n_prompt)]
    found = await text(client, prompt=prompt, echo=True, logprobs=2, max_tokens=tokens, prompt_logprobs=1)
    ids = prompt + found["token_ids"]
    assert len(found["token_ids"]) == tokens
    expected = torch.log_softmax(logits_of(loaded, ids), -1)
    values = found["logprobs"]["token_logprobs"]
    assert values[0] is None
    assert values[1:] == pytest.approx([float(expected[i][ids[i + 1]]) for i in range(len(ids) - 1)], abs=1e-3)
    for i, by_id in enumerate(found["prompt_logprobs"][1:]):
        own = by_id[str(prompt[i + 1])]
        assert own["rank"] == 1 + int((expected[i] > expected[i][prompt[i + 1]]).sum())


async def test_prompts_of_several_lengths_have_their_own_logprobs(
    client: httpx.AsyncClient, loaded: LoadedModel
) -> None:
    """Padded in one batch, side by side with one that wants none."""
    prompts = [[5, 6, 7, 8, 9], [1, 2], list(range(100, 180))]
    body = {"prompt": prompts, "echo": True, "logprobs": 0} | GREEDY | {"max_tokens": 1}
    choices = (await client.post("/v1/completions", json=body)).json()["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        expected = torch.log_softmax(logits_of(loaded, prompt), -1)
        own = [float(expected[i][prompt[i + 1]]) for i in range(len(prompt) - 1)]
        assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(own, abs=1e-3)
