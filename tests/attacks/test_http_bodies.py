"""Bodies that are cheap to send and dear to read: each is a 4xx, and others are served meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.gateway.stage import Place, Stage, chat

CHAT = "/v1/chat/completions"
MESSAGES = '"messages": [{"role": "user", "content": "hi"}]'

KEYS = ",".join(f'"k{i}": 1' for i in range(1_000_000))
HEAVY = {
    "a million fields": f"{{{MESSAGES}, {KEYS}}}",
    "a million fields in one": f'{{{MESSAGES}, "metadata": {{{KEYS}}}}}',
    "a million fields in vLLM's own": f'{{{MESSAGES}, "vllm_xargs": {{{KEYS}}}}}',
    "a million options": f'{{{MESSAGES}, "actscope": {{{KEYS}}}}}',
    "half a million messages": '{"messages": [' + ",".join(['{"role": "user", "content": ""}'] * 500_000) + "]}",
    "many bad messages": '{"messages": [' + ",".join(["1"] * 19_000) + "]}",
    "many bad fields": '{"messages": [' + ",".join(['{"role": 1, "content": 1}'] * 19_000) + "]}",
    "two million parts": '{"messages": [{"role": "user", "content": [' + ",".join(["[]"] * 2_000_000) + "]}]}",
    "two million prompts": '{"prompt": [' + ",".join(['""'] * 2_200_000) + "]}",
}
NESTED = "[" * 100_000 + "]" * 100_000
NUMBERS = ["1e400", "-1e400", "9" * 5000, "-" + "9" * 5000, "1e-99999999999", NESTED]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    stage = Stage()
    stage.engine()
    yield stage.gateway()
    stage.close()


@pytest.fixture
def client(place: Place) -> Iterator[httpx.Client]:
    with place.client() as client:
        yield client


@pytest.mark.parametrize("what", HEAVY)
def test_a_heavy_body_is_refused_at_once(client: httpx.Client, what: str) -> None:
    """The whole answer takes less than the 5 s that one such body took; the load of the machine allowed for."""
    path = "/v1/completions" if "prompts" in what else CHAT
    headers = {"content-type": "application/json"}
    began = time.monotonic()
    answer = client.post(path, content=HEAVY[what].encode(), headers=headers)
    assert time.monotonic() - began < 3
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_value", "invalid_json")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("what", ["a million fields", "a million fields in one", "a million options"])
def test_the_same_for_responses_and_messages(client: httpx.Client, path: str, what: str) -> None:
    began = time.monotonic()
    body = HEAVY[what].replace('"messages"', '"input"' if "responses" in path else '"messages"', 1)
    answer = client.post(path, content=body.encode(), headers={"content-type": "application/json"})
    assert time.monotonic() - began < 3
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize(
    "field",
    ["temperature", "n", "seed", "max_tokens", "actscope", "model", "stop", "stream_options"],
)
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:6])
@pytest.mark.parametrize("inside", [False, True])
def test_numbers_that_do_not_fit_are_a_client_error(
    client: httpx.Client, field: str, number: str, inside: bool
) -> None:
    """Wherever they stand, and whatever reads them: never a 5xx."""
    value = f'{{"x": {number}}}' if inside else number
    body = f'{{{MESSAGES}, "max_tokens": 1, "{field}": {value}}}'
    answer = client.post(CHAT, content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 400 or (answer.status_code == 200 and "99999999999" in number)


@pytest.mark.parametrize("path", ["/v1/actscope/probes/x", "/v1/actscope/requests/x/mark"])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:6])
def test_the_same_for_probes_and_marks(client: httpx.Client, path: str, number: str) -> None:
    body = f'{{"vector": [{number}], "site": "layers.3.resid_post", "why": {number}, "wait": {number}}}'
    method = "PUT" if "probes" in path else "POST"
    answer = client.request(method, path, content=body.encode(), headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500


def test_text_that_is_not_utf8_is_a_client_error(client: httpx.Client) -> None:
    body = b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_long_text_is_still_taken(client: httpx.Client) -> None:
    """Size alone is no reason: it reaches the engine, which here does not know the model."""
    answer = client.post(CHAT, json=chat("no-such-model", content="x" * (20 << 20)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


VOCABULARY = 262_144


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"allowed_token_ids": list(range(VOCABULARY))}),
        (CHAT, {"logit_bias": dict.fromkeys(map(str, range(VOCABULARY)), 1)}),
        ("/v1/completions", {"prompt": ["a"] * 2000}),
    ],
)
def test_what_fits_the_largest_vocabularies_and_batches_is_passed_on(
    client: httpx.Client, path: str, fields: dict[str, Any]
) -> None:
    """Each reaches the engine, which here does not know the model. Before, defaults of the gateway refused it."""
    answer = client.post(
        path, json={**chat("no-such-model"), **fields} if path == CHAT else {"model": "none", **fields}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
