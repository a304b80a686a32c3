"""Scores follow the rows where vLLM's parsers hold text back, drop it or move it, and where a chunk has several tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from engines.vllm.test_gateway import check, dumped, gateway
from support.gateway.stage import Place, picture
from support.vllm.bed import Configuration, Served
from support.vllm.pool import Engines

from actscope.engines.builtin import NAME, model_path, probes_path

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about a fox in the snow"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}
]  # fmt: skip
#: What the model is made to say, as it would say nothing of the kind by itself.
CALL = r"\[look\(x=5\), look\(x=[0-9]{3,6}\)\]"
THOUGHT = r"Here is my thought process: [a-z ]{20,40}\. Here is my response: [a-z ]{20,40}\."
CASES: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 23, "ignore_eos": True},
    "call": {"max_tokens": 60, "tools": TOOLS, "tool_choice": "auto", "structured_outputs": {"regex": CALL}},
    "thought": {"max_tokens": 120, "structured_outputs": {"regex": THOUGHT}},
    "hidden": {"max_tokens": 120, "structured_outputs": {"regex": THOUGHT}, "include_reasoning": False},
}


#: vLLM runs no tool parser before the end of the reasoning, which the model never tells by itself: so one server for each.
PARSERS: dict[str, dict[str, Any]] = {
    "tools": {"tool_call_parser": "pythonic", "enable_auto_tool_choice": True},
    "reasoning": {"reasoning_parser": "granite"},
}


#: The ids of hidden reasoning are not told, so its tokens come with their rows, and the last one, which has no row, is not there.
PAIRS = [(parser, case) for parser in PARSERS for case in CASES if (parser, case) != ("reasoning", "call")]


@contextmanager
def serving(engines: Engines, parser: str) -> Iterator[Place]:
    environment = {"ACTSCOPE_PROBES": str(probes_path()), "ACTSCOPE_MODEL_NAME": NAME}
    always = {"stream_interval": 4, "structured_outputs_config": '{"backend": "xgrammar", "enable_in_reasoning": true}'}
    served = engines.start(
        Served, Configuration(model_path(), environment=environment, arguments=always | PARSERS[parser])
    )
    with gateway(served) as place:
        yield place
    engines.end()


@pytest.fixture(scope="module")
def place(engines: Engines, request: pytest.FixtureRequest) -> Iterator[Place]:
    with serving(engines, request.param) as place:
        yield place


def asked_of(place: Place, case: str) -> dict[str, Any]:
    extra = {"actscope": True, "temperature": 0}
    return {"model": place.model, "messages": MESSAGES, "extra_body": CASES[case] | extra}


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(("place", "case"), PAIRS, indirect=["place"], scope="module")
def test_every_token_has_its_scores_whatever_a_parser_does_with_its_text(
    place: Place, request: pytest.FixtureRequest, case: str, streams: bool
) -> None:
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        answer: Any = client.chat.completions.create(**asked_of(place, case), stream=streams)
        chunks = [dumped(one) for one in answer] if streams else [dumped(answer)]
    found = picture(chunks)
    check(found, whole_prompt=case != "hidden")
    assert found.final is not None and found.final["computed"] == len(found.ids) - (case != "hidden")
    parser = request.node.callspec.params["place"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    parts = [choice["delta" if streams else "message"] for choice in choices]
    calls = [part for part in parts if part.get("tool_calls")]
    thoughts = "".join(part.get("reasoning") or "" for part in parts)
    content = "".join(part.get("content") or "" for part in parts)
    assert bool(calls) == (parser == "tools" and case == "call"), parts
    assert bool(thoughts) == (parser == "reasoning" and case == "thought"), parts
    said = found.text.rpartition("\n")[2]
    assert ("process" in content) == (parser == "tools" and case in ("thought", "hidden")), said
    if streams:
        sizes = [len(one["actscope"]["tokens"]["ids"]) for one in choices if "tokens" in one.get("actscope", {})]
        assert case == "hidden" or max(sizes[1:]) > 1, "a chunk has several tokens"
