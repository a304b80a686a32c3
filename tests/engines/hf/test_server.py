"""The engine's own HTTP server: what it refuses, and with which words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.hf.tiny import tiny
from transformers import PreTrainedTokenizerFast

from actscope.engines.hf.engine import Engine
from actscope.engines.hf.server import Mailboxes, create_app
from actscope.frames import ListSink

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    mailboxes = Mailboxes()
    engine = Engine(tiny("llama"), sink=ListSink(), deliver=mailboxes.deliver).start()
    transport = httpx.ASGITransport(create_app(engine, mailboxes))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        yield client
    engine.close()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": HELLO, "model": "gpt-5"}, "model", "model_not_found"),
        ({"messages": HELLO, "max_tokens": 9999}, "messages", "context_length_exceeded"),
        ({"messages": []}, "messages", None),
        ({"messages": "hello"}, "messages", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", None),
        ({"messages": HELLO, "temperature": -1}, "temperature", None),
        ({"messages": HELLO, "temperature": "hot"}, "temperature", None),
        ({"messages": HELLO, "tools": [{}]}, "tools", None),
        ({"messages": HELLO, "logprobs": 2}, "logprobs", None),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs", None),
        ({"messages": HELLO, "top_logprobs": 21, "logprobs": True}, "top_logprobs", None),
        ({"messages": HELLO, "n": 9999}, "n", None),
        ({"messages": HELLO, "best_of": 2}, "best_of", None),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options", None),
        ({"messages": HELLO, "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", None),
        (
            {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            None,
        ),
        ({"messages": HELLO, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", None),
        ({"messages": HELLO, "allowed_token_ids": []}, "allowed_token_ids", None),
        ({"messages": HELLO, "allowed_token_ids": [258]}, "allowed_token_ids", None),
        ({"messages": HELLO, "stop_token_ids": [-1]}, "stop_token_ids", None),
        ({"messages": HELLO, "logit_bias": {"a": 1}}, "logit_bias", None),
        ({"messages": HELLO, "bad_words": [""]}, "bad_words", None),
        ({"messages": HELLO, "min_tokens": 9, "max_tokens": 8}, "min_tokens", None),
        ({"messages": HELLO, "truncation_side": "up"}, "truncation_side", None),
        ({"messages": HELLO, "truncate_prompt_tokens": 600}, "truncate_prompt_tokens", None),
        ({"messages": HELLO, "max_output_tokens": 5}, "max_output_tokens", None),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages", None),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format", None),
        ({"messages": HELLO, "stop": ""}, "stop", None),
    ],
)
async def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, code: str | None
) -> None:
    answer = await client.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)])
async def test_unknown_paths_and_methods_are_openai_errors(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert path in answer.json()["error"]["message"] or method in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 10_000_000}]}),
        ("completions", {"prompt": "x" * 10_000_000}),
    ],
)
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lambda *a, **b: pytest.fail("it was tokenized"))
    answer = await client.post(f"/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_bad_json_is_said_to_be_that(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", content=b'{"messages": [')
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]


async def test_a_request_id_of_other_characters_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO}, headers={"X-Request-Id": "a b"})
    assert answer.status_code == 400


@pytest.mark.parametrize(("prompt", "choices"), [("ab", 1), (["ab", "c"], 2), ([97, 98], 1), ([[97], [98, 99]], 2)])
async def test_completions_take_texts_and_token_ids_one_or_several(
    client: httpx.AsyncClient, prompt: Any, choices: int
) -> None:
    body = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert [c["index"] for c in answer["choices"]] == list(range(choices))
    assert all(len(c["token_ids"]) == 3 for c in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 3 * choices


@pytest.mark.parametrize("prompt", [["a", 1], [], [[1], "a"], [10**6]])
async def test_prompts_that_are_mixed_empty_or_outside_the_vocabulary_are_refused(
    client: httpx.AsyncClient, prompt: Any
) -> None:
    answer = await client.post("/v1/completions", json={"prompt": prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


async def test_several_choices_of_one_seed_differ_and_repeat(client: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "n": 3, "seed": 5, "max_tokens": 8, "temperature": 1.0, "ignore_eos": True}
    first, second = [(await client.post("/v1/chat/completions", json=body)).json()["choices"] for _ in range(2)]
    texts = [c["message"]["content"] for c in first]
    assert len(set(texts)) == 3
    assert texts == [c["message"]["content"] for c in second]


async def test_a_probe_that_does_not_fit_is_refused_and_one_that_does_is_listed(client: httpx.AsyncClient) -> None:
    wrong = await client.put("/v1/actscope/probes/p", json={"vector": [1.0] * 63, "site": "layers.1.resid_post"})
    assert wrong.status_code == 400
    assert "width 63" in wrong.json()["error"]["message"]
    right = await client.put("/v1/actscope/probes/p", json={"vector": [1.0] * 64, "site": "layers.1.resid_post"})
    assert right.json()["slot"] == 0
    assert [p["id"] for p in (await client.get("/v1/actscope/probes")).json()["probes"]] == ["p"]
    assert (await client.delete("/v1/actscope/probes/p")).status_code == 204
    assert (await client.delete("/v1/actscope/probes/p")).status_code == 404


@pytest.mark.parametrize(
    "text", ["The hill is quiet. " * 800_000, "x" * 15_000_000, " " * 15_000_000, "\u2744" * 5_000_000]
)
async def test_a_prompt_far_beyond_the_context_is_refused_without_tokenizing_it(
    client: httpx.AsyncClient, text: str
) -> None:
    """And an ordinary request is answered meanwhile."""
    large = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": text}, timeout=60))
    small = await client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 2})
    assert small.status_code == 200
    began = time.monotonic()
    answer = await large
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert time.monotonic() - began < 5


async def test_a_prompt_at_the_edge_of_the_context_is_counted_exactly(client: httpx.AsyncClient) -> None:
    """What is tried on the beginning of a text never refuses one that fits."""
    context = tiny("llama").max_context
    for n, status in ((context - 2, 200), (context - 1, 400)):
        body = {"prompt": "a" * n, "max_tokens": 2, "ignore_eos": True}
        assert (await client.post("/v1/completions", json=body)).status_code == status


async def test_too_many_token_ids_are_refused_before_they_are_looked_at(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json={"prompt": [97] * 2_000_000})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
