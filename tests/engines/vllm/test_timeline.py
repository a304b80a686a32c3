"""The timeline of tokens that real vLLM draws: the plugin's stamps are in order, and explain when they came at the client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engines.vllm.test_gateway import gateway
from engines.vllm.test_variants import NGRAM
from support.gateway.stage import Place
from support.vllm.bed import Configuration, Served
from support.vllm.pool import Engines
from support.waiting import until

from actscope.engines.builtin import NAME, model_path, probes_path

WAYS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v1, scheduled before the last tokens are known": {"async_scheduling": True},
    "v2": {"runner": "v2"},
    "v1 with drafts": {"arguments": {"speculative_config": NGRAM}},
}


@pytest.fixture
def has_drafts(request: pytest.FixtureRequest) -> bool:
    return "drafts" in request.node.callspec.id


@pytest.fixture(scope="module", params=WAYS)
def place(engines: Engines, request: pytest.FixtureRequest) -> Iterator[Place]:
    environment = {"ACTSCOPE_PROBES": str(probes_path()), "ACTSCOPE_MODEL_NAME": NAME}
    served = engines.start(Served, Configuration(model_path(), environment=environment, **WAYS[request.param]))
    with gateway(served) as place:
        yield place
    engines.end()


def ask(place: Place, n: int, stream: bool = True) -> str:
    with place.client(timeout=120) as client:
        messages = [{"role": "user", "content": f"Tell me about a fox{' in the snow' * n}"}]
        body = {"messages": messages, "max_tokens": 8 + n, "ignore_eos": True, "stream": stream, "actscope": True}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        request: str = response.headers["x-request-id"]
        return request


def whole(place: Place, request: str) -> dict[str, Any]:
    """The timeline once every token is at the end of its way, and the engine has said when the last one was drawn."""
    found: dict[str, Any] = {}

    def is_whole() -> bool:
        with place.client() as client:
            found.update(client.get(f"/v1/actscope/requests/{request}/timeline").json())
        tokens = found["tokens"]
        return len(tokens) == found["completion_tokens"] > 0 and not tokens[-1]["unexplained_ns"]

    until(is_whole)
    return found


def test_the_plugins_stamps_are_in_order_and_explain_when_tokens_came(place: Place, has_drafts: bool) -> None:
    with ThreadPoolExecutor(6) as pool:
        requests = list(pool.map(lambda n: ask(place, n), range(1, 7)))
    shares: list[float] = []
    for n, request in enumerate(requests, 1):
        found = whole(place, request)
        assert found["measured_at"] == "client" and len(found["tokens"]) == 8 + n
        cursor = found["tokens"][0]["start_ns"]
        for token in found["tokens"]:
            assert token["start_ns"] == cursor
            assert sum(part["ns"] for part in token["parts"]) + token["unexplained_ns"] == token["gap_ns"]
            cursor += token["gap_ns"]
        own = [[one["number"] for one in token["passes"] if one["own"]] for token in found["tokens"]]
        drew = [numbers[-1] for numbers in own]
        assert all(len(numbers) == 1 for numbers in own[1:]) and drew == sorted(drew)
        assert has_drafts or len(drew) == len(set(drew))  # a pass draws several tokens only if drafts were accepted
        assert {"pass", "sampling", "delivery"} <= {p["name"] for p in found["tokens"][0]["parts"]}
        shares += [1 - t["unexplained_ns"] / t["gap_ns"] for t in found["tokens"] if t["gap_ns"]]
    assert float(np.percentile(shares, 1)) >= 0.99


def test_an_answer_in_one_piece_is_timed_in_the_engine(place: Place, has_drafts: bool) -> None:
    found = whole(place, ask(place, 2, stream=False))
    assert found["measured_at"] == "engine" and len(found["tokens"]) == 10
    assert [token["unexplained_ns"] for token in found["tokens"]] == [0] * 10
    assert has_drafts or all(token["gap_ns"] for token in found["tokens"])  # one pass draws all drafts that it accepts
