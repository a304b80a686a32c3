"""The gateway in front of the real engine: OpenAI clients, and scores that belong to their own request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gateway.conformance import OpenAIConformance, sync_client
from support.gateway.stage import Picture, Place, chunks, picture
from support.servers import serving

__all__ = ["TestRealEngine", "sync_client"]

#: Batched and padded matmuls round otherwise than a run alone.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving() as running:
        yield running.place


@pytest.fixture
def node_project() -> Path:
    return Path(__file__).parent / "node"


class TestRealEngine(OpenAIConformance):
    """The whole conformance suite, on the built-in model."""


def ask(place: Place, content: str, **fields: Any) -> Picture:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24, "actscope": True}
    with place.client(timeout=120) as client:
        return picture(chunks(client, body | fields))


def same(found: Picture, alone: Picture) -> None:
    """Token for token and score for score."""
    assert found.ids == alone.ids
    assert found.states == alone.states
    for key, cell in alone.cells.items():
        if cell is not None:
            assert found.cells[key] == pytest.approx(cell, abs=TOLERANCE), key


def test_two_identical_prompts_at_once_score_as_each_does_alone(place: Place) -> None:
    alone = ask(place, "Tell me about a fox in the snow")
    with ThreadPoolExecutor(2) as pool:
        pair = list(pool.map(lambda _: ask(place, "Tell me about a fox in the snow"), range(2)))
    assert pair[0].request != pair[1].request
    for found in pair:
        same(found, alone)


def test_32_mixed_requests_at_once_score_as_each_does_alone(place: Place) -> None:
    subjects = ("a fox", "the sea", "a sad king", "a wolf in the forest", "two robots", "the night", "bread", "a storm")
    prompts = [f"Tell me about {subject}" + " and more" * (i % 4) for i, subject in enumerate(subjects * 4)]
    lengths = [8 + 5 * (i % 5) for i in range(32)]
    alone = [ask(place, prompt, max_tokens=n) for prompt, n in zip(prompts, lengths, strict=True)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda i: ask(place, prompts[i], max_tokens=lengths[i]), range(32)))
    assert len({found.request for found in together}) == 32
    for found, expected in zip(together, alone, strict=True):
        same(found, expected)


def test_a_probe_added_swapped_and_removed_over_the_api_shows_in_the_next_answers(place: Place) -> None:
    with place.client() as client:
        width = client.get("/v1/actscope/info").json()["engine"]["d_model"]
        vector = np.random.default_rng(0).normal(size=width).tolist()
        added = client.put("/v1/actscope/probes/mine", json={"vector": vector, "site": "layers.1.resid_post"})
        assert added.status_code == 200
        first = ask(place, "hello")
        client.put("/v1/actscope/probes/mine", json={"vector": vector, "site": "layers.1.resid_post", "bias": 100.0})
        second = ask(place, "hello")
        wrong = client.put("/v1/actscope/probes/bad", json={"vector": [1.0], "site": "layers.1.resid_post"})
        assert wrong.status_code == 400
        assert str(width) in wrong.json()["error"]["message"]
        assert client.delete("/v1/actscope/probes/mine").status_code in (200, 204)
        assert client.delete("/v1/actscope/probes/mine").status_code == 404
    third = ask(place, "hello")
    assert "mine" in first.headers[-1]
    assert "mine" not in third.headers[-1]
    mine = {key: cell for key, cell in first.cells.items() if key[1] == "mine" and cell}  # where ReLU does not cut off
    assert len(mine) > 2
    for key, cell in mine.items():
        assert second.cells[key] == pytest.approx(cell + 100, abs=1e-3)


def test_a_client_that_leaves_ends_its_request_in_the_engine(place: Place) -> None:
    body = {"messages": [{"role": "user", "content": "Tell me a long story"}], "max_tokens": 900}
    body |= {"stream": True, "ignore_eos": True}
    with place.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
            next(response.iter_lines())
        with client.stream("GET", f"/v1/actscope/requests/{request}/events") as events:
            said = "".join(events.iter_text())  # ends when the request does
        state = client.get(f"/v1/actscope/requests/{request}").json()["state"]
    assert "event: done" in said
    assert state == "aborted"


def test_a_raw_vector_on_a_real_model_gets_a_range_in_which_most_tokens_lie(place: Place) -> None:
    """Both signs, symmetric, learnt from the tokens behind the first one; 0 to 1 would show less than a fifth of them."""
    with place.client() as client:
        width = client.get("/v1/actscope/info").json()["engine"]["d_model"]
        vector = (10 * np.random.default_rng(1).normal(size=width)).tolist()
        upload = {"vector": vector, "site": "layers.2.resid_post", "activation": "identity"}
        assert client.put("/v1/actscope/probes/raw", json=upload).json()["range"] is None
        found = ask(place, "Tell me about a fox in the snow", max_tokens=60)
        raw = next(p for p in client.get("/v1/actscope/probes").json()["probes"] if p["id"] == "raw")
        client.delete("/v1/actscope/probes/raw")
    cells = {at: cell for (at, name), cell in found.cells.items() if name == "raw" and cell is not None and at > 0}
    values = np.array(list(cells.values()))
    low, high = raw["range"]
    assert -low == high > 1
    assert raw["signed"] is True
    assert 8 < raw["range_learnt"]["tokens"] <= len(values)
    assert np.mean(np.abs(values) < high) > 0.8
    assert np.mean((values > 0) & (values < 1)) < 0.2
