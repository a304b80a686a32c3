"""Frameworks that drop fields which they do not know: the scores are found by the id that each of them keeps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import agents
import httpx
import litellm
import openai
import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from support.clients import Target

import actscope.client

PROMPT = "Tell me about a fox in the snow"
NODE = Path(__file__).parent / "node"


@pytest.fixture(autouse=True)
def no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the server is talked to: no price lists, no traces."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    agents.set_tracing_disabled(True)


def check(target: Target, id: str, said: str) -> None:
    """The request of this id said this, and each of its tokens but the last has its scores."""
    found = actscope.client.scores(id, base_url=target.base_url, api_key=target.token)
    assert said
    assert found.text.removesuffix("<|end|>").endswith(said)
    assert found.complete
    assert found.coverage is not None
    assert found.coverage.computed == len(found) - 1


@pytest.mark.parametrize("ask", [{}, {"extra_body": {"actscope": True}}], ids=["plain", "scores"])
async def test_litellm(target: Target, ask: dict[str, Any]) -> None:
    """Whole, streamed and asynchronous. A whole answer that asked for scores has the payload beside its choice."""
    call = {"model": f"openai/{target.model}", "api_base": target.base_url, "api_key": target.token, **ask}
    call |= {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0}
    whole = litellm.completion(**call)
    check(target, whole.id, whole.choices[0].message.content)
    chunks = list(litellm.completion(**call, stream=True))
    check(target, chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    later = await litellm.acompletion(**call)
    check(target, later.id, later.choices[0].message.content)
    if ask:
        scores = actscope.client.Scores()
        scores.add(whole.choices[0].provider_specific_fields["actscope"])
        assert list(scores) == list(actscope.client.scores(whole.id, base_url=target.base_url, api_key=target.token))


async def test_langchain(target: Target) -> None:
    """Whole answers keep the id. Streams drop it: with `include_response_headers` it is the header X-Request-Id."""
    model = ChatOpenAI(
        model=target.model, base_url=target.base_url, api_key=target.token, max_tokens=12, temperature=0,
        max_retries=0, include_response_headers=True,
    )  # fmt: skip
    whole = model.invoke(PROMPT)
    check(target, whole.response_metadata["id"], whole.content)
    later = await model.ainvoke(PROMPT)
    check(target, later.response_metadata["id"], later.content)
    chunks = list(model.stream(PROMPT))
    check(target, chunks[0].response_metadata["headers"]["x-request-id"], "".join(str(c.content) for c in chunks))
    assert isinstance(whole, AIMessage)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
async def test_openai_agents(target: Target, wrapped: bool) -> None:
    """Each model response of a run, streamed or not, keeps the id as that of its HTTP request."""
    async with openai.AsyncOpenAI(base_url=target.base_url, api_key=target.token, max_retries=0) as plain:
        client = actscope.client.wrap(plain) if wrapped else plain
        model = agents.OpenAIChatCompletionsModel(model=target.model, openai_client=client)
        settings = agents.ModelSettings(max_tokens=12, temperature=0)
        teller = agents.Agent(name="teller", instructions="Be brief.", model=model, model_settings=settings)
        whole = await agents.Runner.run(teller, PROMPT)
        streamed = agents.Runner.run_streamed(teller, PROMPT)
        async for _ in streamed.stream_events():
            pass
    for result in (whole, streamed):
        check(target, result.raw_responses[0].request_id or "", result.final_output)


def test_ai_sdk(target: Target) -> None:
    """Whole and streamed; the field can be sent, and the raw answer and the raw chunks have the scores."""
    command = ["node", str(NODE / "ai_sdk.mjs"), target.base_url, target.token, target.model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=NODE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check(target, found["whole"]["id"], found["whole"]["text"])
    check(target, found["stream"]["id"], found["stream"]["text"])
    assert found["whole"]["usage"]["outputTokens"] == 12
    assert found["whole"]["scores"]["request"] == found["whole"]["id"]
    assert found["stream"]["payloads"] >= 1
    assert found["status"] == 404


def test_without_a_client_it_is_one_get(target: Target) -> None:
    """Any HTTP client: the id is in the header of the answer, and its request under `/v1/actscope/requests`."""
    headers = {"authorization": f"Bearer {target.token}"}
    body = {"model": target.model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12}
    with httpx.Client(base_url=target.base_url, headers=headers, timeout=60, trust_env=False) as client:
        answer = client.post("/chat/completions", json=body)
        whole = client.get(f"/actscope/requests/{answer.headers['x-request-id']}").json()
    assert answer.headers["x-request-id"] == answer.json()["id"] == whole["request"]
    assert whole["final"]["computed"] == len(whole["tokens"]["ids"]) - 1
