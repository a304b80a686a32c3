"""OpenAI's clients: the conformance suite of the gateway (Python and Node), and `actscope.client`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from support.clients import ROOT, Target
from support.gateway.conformance import MESSAGES, OpenAIConformance, check, dumped, sync_client
from support.gateway.stage import Place, picture

import actscope.client

__all__ = ["TestOpenAI", "sync_client"]

GREEDY: Any = {"max_tokens": 12, "temperature": 0}


class TestOpenAI(OpenAIConformance):
    """The whole suite."""

    def test_errors_are_openai_errors(self, place: Place, sync_client: openai.OpenAI) -> None:
        """The client raises its own exceptions. The codes are those of the server behind the gateway."""
        create = sync_client.chat.completions.create
        with pytest.raises(openai.NotFoundError):
            create(model="no-such-model", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError):
            create(model=place.model, messages=MESSAGES, max_tokens=10**6)
        with pytest.raises(openai.BadRequestError) as wrong:
            create(model=place.model, messages="hello")  # type: ignore[arg-type]
        assert wrong.value.param == "messages"
        with pytest.raises(openai.AuthenticationError):
            sync_client.with_options(api_key="wrong-token").models.list()

    @pytest.fixture
    def node_project(self) -> Path:
        return ROOT / "tests/gateway/node"


def test_the_wrapped_client_gives_the_scores_of_the_payloads(target: Target) -> None:
    with openai.OpenAI(base_url=target.base_url, api_key=target.token, max_retries=0) as plain:
        client = actscope.client.wrap(plain)
        answer = client.chat.completions.create(model=target.model, messages=MESSAGES, **GREEDY)
        stream = client.completions.create(model=target.model, prompt="Once upon a time", stream=True, **GREEDY)
        chunks = [dumped(chunk) for chunk in stream]
        found = client.scores(answer.id)
    assert answer.usage is not None
    check(picture([dumped(answer)]), answer.usage.completion_tokens)
    for scores, expected in ((answer.scores, picture([dumped(answer)])), (stream.scores, picture(chunks))):
        cells = {(token.position, name): s.value for token in scores for name, s in token.scores.items()}
        assert cells == expected.cells
        assert {token.position: token.id for token in scores} == expected.ids
        assert scores.complete
    assert list(found) == list(answer.scores)


async def test_the_asynchronous_client_too(target: Target) -> None:
    async with openai.AsyncOpenAI(base_url=target.base_url, api_key=target.token, max_retries=0) as plain:
        client = actscope.client.wrap(plain)
        stream = await client.chat.completions.create(model=target.model, messages=MESSAGES, stream=True, **GREEDY)
        tokens = [token async for token in stream.tokens()]
        found = await client.scores(stream.scores.request)
    assert list(found) == tokens
    assert not any(token.pending for token in tokens)
