"""The arithmetic of `actscope bench serving`. A run with real vLLM takes minutes, and its figures are in `bench/runs/`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from actscope.bench import serving
from actscope.bench.serving import STEADY_MB, SoakLoad, _growth, _results, _stream, _whole
from actscope.errors import SettingsError


def final(present: int, computed: int) -> dict[str, Any]:
    return {"final": {"present": present, "computed": computed}}


def answering(content: bytes, status: int = 200) -> httpx.AsyncClient:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


async def judged(content: bytes, status: int = 200, *, streams: bool = False, bare: bool = False) -> SoakLoad:
    load, body = SoakLoad(bare=bare), {"max_tokens": 4, "n": 2}
    async with answering(content, status) as client:
        await (_stream if streams else _whole)(client, body, None, load)  # type: ignore[arg-type]
    return load


@pytest.mark.parametrize(("computed", "what"), [(9, "right"), (8, "without_scores"), (10, "without_scores")])
async def test_an_answer_is_right_only_if_every_token_but_the_last_of_each_choice_has_its_scores(
    computed: int, what: str
) -> None:
    choices = [{"actscope": final(10, 9)}, {"actscope": final(10, computed)}]
    load = await judged(
        json.dumps({"choices": choices, "usage": {"prompt_tokens": 6, "completion_tokens": 8}}).encode()
    )
    assert load.done == {what: 1}


async def test_a_refusal_is_counted_with_its_words() -> None:
    load = await judged(b"too many", 429)
    assert (load.done, load.told) == ({"refused": 1}, {"refused": "too many"})


@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_that_ends_without_its_usage_is_broken(usage: bool) -> None:
    events: list[dict[str, Any]] = [{"choices": [{"actscope": final(10, 9)}]}]
    if usage:
        events.append({"choices": [], "usage": {"prompt_tokens": 6, "completion_tokens": 8}})
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    load = await judged(f"{lines}data: [DONE]\n\n".encode(), streams=True)
    assert load.done == ({"right": 1} if usage else {"broken": 1})


@pytest.mark.parametrize(("tokens", "what"), [(8, "right"), (7, "broken")])
async def test_without_the_plugin_an_answer_is_right_if_all_its_tokens_came(tokens: int, what: str) -> None:
    answer = {"choices": [{}, {}], "usage": {"prompt_tokens": 6, "completion_tokens": tokens}}
    assert (await judged(json.dumps(answer).encode(), bare=True)).done == {what: 1}


def test_growth_is_from_the_third_tenth_to_the_last() -> None:
    """The first two are left out: caches fill in them."""
    load = SoakLoad()
    load.memory = [(at, "gateway", mb) for at, mb in ((0, 10.0), (15, 50.0), (25, 60.0), (50, 500.0), (95, 61.0))]
    found = _growth(load, "gateway", 100.0)
    assert (found["value"], found["ok"]) == (1.0, True)


def test_kept_requests_that_nobody_counts_miss_the_bar() -> None:
    load = SoakLoad(kept=5)
    load.memory = [(1.0, name, 1.0) for name in STEADY_MB]
    found = {one["name"]: one for one in _results(load, {"whole": 2, "incomplete": 1, "lost": 1}, 10.0, 4, 0)}
    assert (found["kept_uncounted"]["value"], found["kept_uncounted"]["ok"]) == (1, False)


def test_without_the_plugin_there_is_no_sidecar_to_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "require_vllm", lambda: None)  # it is not installed here
    with pytest.raises(SettingsError, match="--bare with --kills"):
        serving.run(1.0, print, kills=1, bare=True)
