"""What any gateway in front of any engine must do for real OpenAI clients; subclass with a `place` fixture.

class TestMyEngine(OpenAIConformance):
    @pytest.fixture
    def place(self) -> Place: ...
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.gateway.stage import Picture, Place, picture

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me of the quiet hill."}]
SCORES = {"actscope": True}


@pytest.fixture
def sync_client(place: Place) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        yield client


def dumped(chunk: Any) -> dict[str, Any]:
    found: dict[str, Any] = chunk.model_dump(exclude_unset=True)
    return found


def check(found: Picture, completion_tokens: int) -> None:
    """What holds for every choice that has scores, whatever the engine."""
    assert found.final is not None
    present, computed = found.final["present"], found.final["computed"]
    assert sorted(found.ids) == list(range(present))
    assert found.prompt_tokens is not None
    assert present == found.prompt_tokens + completion_tokens
    probes = found.headers[-1]
    assert all((p, probe) in found.states for p in range(present) for probe in probes)
    assert computed == present - 1, "every row but the last token's is computed"
    assert all(found.states[present - 1, probe] == "n" for probe in probes)


class OpenAIConformance:
    """openai-python (sync, async, helper) and openai-node, with scores and without."""

    def test_models(self, sync_client: openai.OpenAI) -> None:
        """The engine's model is listed."""
        assert sync_client.models.list().data[0].id

    @pytest.mark.parametrize("extra", [{}, SCORES], ids=["plain", "scores"])
    def test_stream(self, place: Place, sync_client: openai.OpenAI, extra: dict[str, Any]) -> None:
        """A stream makes the same text with and without scores, and ends with its usage."""
        options: Any = {"include_usage": True}
        stream = sync_client.chat.completions.create(
            model=place.model,
            messages=MESSAGES,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options=options,
            extra_body=extra,
        )
        found = [dumped(chunk) for chunk in stream]
        usage = found[-1]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] >= 1
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in found[:-1])
        assert found[-2]["choices"][0]["finish_reason"] in ("stop", "length")
        assert not any(choice.get("token_ids") for c in found for choice in c["choices"])
        if extra:
            check(picture(found), usage["usage"]["completion_tokens"])
        else:
            assert not any("actscope" in choice for c in found for choice in c["choices"])

    @pytest.mark.parametrize("extra", [{}, SCORES], ids=["plain", "scores"])
    def test_whole(self, place: Place, sync_client: openai.OpenAI, extra: dict[str, Any]) -> None:
        """The same at once."""
        answer = sync_client.chat.completions.create(
            model=place.model, messages=MESSAGES, max_tokens=12, temperature=0, extra_body=extra
        )
        assert answer.choices[0].message.content
        assert answer.usage is not None
        if extra:
            check(picture([dumped(answer)]), answer.usage.completion_tokens)
        else:
            assert "actscope" not in dumped(answer)["choices"][0]

    def test_stream_helper(self, place: Place, sync_client: openai.OpenAI) -> None:
        """The accumulating helper of openai-python is not confused by scores."""
        with sync_client.chat.completions.stream(
            model=place.model, messages=MESSAGES, max_tokens=12, temperature=0, extra_body=SCORES
        ) as stream:
            said = "".join(event.delta for event in stream if event.type == "content.delta")
            whole = stream.current_completion_snapshot  # get_final_completion() refuses answers that were cut short
        assert whole.choices[0].message.content == said
        assert whole.choices[0].finish_reason in ("stop", "length")

    def test_several_choices(self, place: Place, sync_client: openai.OpenAI) -> None:
        """With n = 2 each choice has scores of its own."""
        answer = sync_client.chat.completions.create(
            model=place.model, messages=MESSAGES, max_tokens=8, n=2, seed=1, extra_body=SCORES
        )
        requests = {picture([dumped(answer)], index).request for index in (0, 1)}
        assert len(requests) == 2

    def test_plain_completions(self, place: Place, sync_client: openai.OpenAI) -> None:
        """/v1/completions, streaming and not."""
        answer = sync_client.completions.create(model=place.model, prompt="The hill", max_tokens=6, extra_body=SCORES)
        assert answer.usage is not None
        check(picture([dumped(answer)]), answer.usage.completion_tokens)
        stream = sync_client.completions.create(
            model=place.model, prompt="The hill", max_tokens=6, temperature=0, stream=True, extra_body=SCORES
        )
        found = picture([dumped(chunk) for chunk in stream])
        assert found.final is not None

    async def test_async(self, place: Place) -> None:
        """The asynchronous client, streaming and not."""
        async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=place.model, messages=MESSAGES, max_tokens=8, temperature=0, stream=True, extra_body=SCORES
            )
            found = picture([dumped(chunk) async for chunk in stream])
            answer = await client.chat.completions.create(
                model=place.model, messages=MESSAGES, max_tokens=8, temperature=0, extra_body=SCORES
            )
        assert answer.usage is not None
        check(found, answer.usage.completion_tokens)

    def test_errors_are_openai_errors(self, place: Place, sync_client: openai.OpenAI) -> None:
        """The client raises its own exceptions, with the code and the parameter."""
        with pytest.raises(openai.NotFoundError) as missing:
            sync_client.chat.completions.create(model="no-such-model", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            sync_client.chat.completions.create(model=place.model, messages=MESSAGES, max_tokens=10**6)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as wrong:
            sync_client.chat.completions.create(model=place.model, messages="hello")  # type: ignore[arg-type]
        assert wrong.value.param == "messages"
        with pytest.raises(openai.AuthenticationError):
            sync_client.with_options(api_key="wrong-token").models.list()

    def test_node_client(self, place: Place, node_project: Path) -> None:
        """openai-node: stream, helper, whole answer and error, with scores."""
        script = node_project / "client.mjs"
        command = ["node", str(script), place.url, place.token, place.model]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=node_project)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        check(picture(found["chunks"]), found["usage"]["completion_tokens"])
        assert found["helperText"] == found["text"] == found["wholeText"]
        assert found["errorCode"] in ("model_not_found", 404)  # the second is vLLM's
        assert found["payloads"] >= 1
