"""Other paths of the engine are proxied byte for byte in both directions, with listed headers only."""

from __future__ import annotations

import json
import socket
import zlib
from collections.abc import Iterator

import httpx
import pytest
from support.gateway.stage import TOKEN, EngineProcess, Place, Stage, chat
from support.waiting import until

from actscope.gateway.upstream.headers import passed, returned


@pytest.fixture
def client(vllm_place: Place) -> Iterator[httpx.Client]:
    with vllm_place.client() as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_any_method_of_any_path_under_v1_goes_through(client: httpx.Client, method: str) -> None:
    """With its query and its body; status and answer come back as they were."""
    body = b"" if method in ("GET", "OPTIONS") else b"x" * 100_000
    answer = client.request(method, "/v1/echo/a%20b/c?x=1&y=%2F", content=body)
    assert answer.status_code == 201
    told = {"method": method, "path": "/v1/echo/a%20b/c?x=1&y=%2F", "n": len(body), "crc": zlib.crc32(body)}
    assert answer.json() == told


def test_heads_have_no_body(client: httpx.Client) -> None:
    answer = client.head("/v1/echo")
    assert (answer.status_code, answer.content) == (201, b"")
    assert int(answer.headers["content-length"]) > 0


def test_vllms_own_paths_go_through_and_those_that_change_it_do_not(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"prompt": "x"}).status_code == 201
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 201
    assert client.post("/sleep").status_code in (404, 405)
    assert client.post("/inference/v1/generate", json={"token_ids": [1]}).status_code != 405


@pytest.mark.parametrize("asked", ["true", "{}", '{"probes": []}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions/batch", "/v1/embeddings", "/tokenize"])
def test_scores_of_an_answer_that_has_none_are_refused(client: httpx.Client, path: str, asked: str) -> None:
    """Before, the field reached the engine, which refused it as unknown, or ignored it."""
    headers = {"content-type": "application/json; charset=utf-8"}
    refused = client.post(path, content=f'{{"input": "x", "actscope": {asked}}}', headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_scores")
    assert "/v1/chat/completions," in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": "x", "actscope": false}',
        b'{"input": "\\"actscope\\""}',
        b'{"in": {"actscope": 1}}',
        b'["actscope"]',
        b'{"actscope"',
        b"",
    ],
)
def test_other_json_bodies_are_passed_on_as_they_are(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/echo", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 201
    assert (answer.json()["n"], answer.json()["crc"]) == (len(body), zlib.crc32(body))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/actscope/nothing",
        "/v1/actscope",
        "/v1/%61ctscope/probes2",
        "/v1/echo/../actscope/x",
        "/v1/%2e%2e/sleep",
        "/v1/echo/..%2f..%2fsleep",
        "/v1/..%5csleep",
        "/v1//actscope/x",
        "/v1/echo/%0a",
    ],
)
def test_the_gateways_own_paths_and_ways_out_of_v1_are_never_passed(
    vllm_place: Place, vllm_engine: EngineProcess, path: str
) -> None:
    host, port = vllm_place.url.removeprefix("http://").split(":")
    seen = vllm_engine.state()["headers"]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        assert connection.makefile("rb").readline().split()[1] in (b"404", b"405")
    assert vllm_engine.state()["headers"] == seen


def test_what_is_doubly_quoted_stays_so(client: httpx.Client) -> None:
    assert client.get("/v1/echo/%252e%252e").json()["path"] == "/v1/echo/%252e%252e"


def test_only_listed_headers_go_either_way(client: httpx.Client, vllm_engine: EngineProcess) -> None:
    headers = {"cookie": "a=b", "x-request-id": "mine", "x-forwarded-for": "1.2.3.4", "openai-beta": "v2", "te": "x"}
    answer = client.post("/v1/echo", content=b"x", headers=headers)
    seen = {k.lower(): v for k, v in vllm_engine.state()["headers"].items()}
    assert seen["openai-beta"] == "v2"
    assert not {"authorization", "cookie", "x-request-id", "x-forwarded-for", "te"} & set(seen)
    assert answer.headers["content-disposition"] == "inline"
    assert not {"x-secret", "set-cookie"} & set(answer.headers)
    assert TOKEN not in json.dumps(seen)


def test_the_length_of_compressed_bytes_is_not_sent_with_uncompressed_ones() -> None:
    assert returned({"content-length": "3", "content-encoding": "gzip", "content-type": "x"}) == {"content-type": "x"}
    assert passed({"Content-Length": "3", "Connection": "close"}) == {"Content-Length": "3"}


def test_every_path_needs_the_token(vllm_place: Place) -> None:
    for method, path in (("POST", "/v1/embeddings"), ("POST", "/tokenize"), ("GET", "/ping"), ("GET", "/v1/x")):
        assert httpx.request(method, f"{vllm_place.url}{path}").status_code == 401


def test_bodies_and_answers_are_streamed_at_the_same_time(vllm_place: Place) -> None:
    """The answer to the first line comes before the second one has been sent."""
    host, port = vllm_place.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/slowly HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n".encode())
        received = b""
        while b"data: one" not in received:
            received += connection.recv(4096)
        connection.sendall(b"4\r\ntwo\n\r\n0\r\n\r\n")
        while b"data: two" not in received:
            received += connection.recv(4096)
        assert received.startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_closes_the_engines_side(client: httpx.Client, vllm_engine: EngineProcess) -> None:
    before = vllm_engine.state()["aborted"].count("slowly")
    with client.stream("POST", "/v1/slowly", content=b"hold\n") as response:
        next(response.iter_raw())
    until(lambda: vllm_engine.state()["aborted"].count("slowly") == before + 1)


def test_a_body_that_is_too_large_is_refused(stage: Stage) -> None:
    """Both the announced length and the bytes received are bounded."""
    engine = stage.engine("--kind", "vllm")
    place = stage.gateway(upstream=engine.endpoint, max_body_bytes=1000)
    with place.client() as client:
        for content in (b"x" * 1001, (b"x" * 100 for _ in range(50))):
            answer = client.post("/v1/echo", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("events", ["", "1"])
def test_an_engine_that_breaks_off(client: httpx.Client, events: str) -> None:
    """A stream of events ends with an error; anything else is cut off, so that it does not pass for whole."""
    url = f"/v1/slowly?events={events}"
    if events:
        answer = client.post(url, content=b"one\nhang up\n")
        assert json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "engine_failed"
    else:
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(url, content=b"one\nhang up\n")


def test_redirects_are_not_followed(client: httpx.Client) -> None:
    answer = client.post("/v1/moved")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")


def test_an_engine_that_is_not_up_is_a_503(stage: Stage) -> None:
    place = stage.gateway(up=False)
    with place.client() as client:
        answer = client.post("/v1/embeddings", json={"input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_not_up")
        assert client.post("/v1/actscope/nothing").status_code == 404


def test_requests_that_are_passed_on_are_bounded(stage: Stage) -> None:
    """One too many is 429; completions are counted apart."""
    engine = stage.engine("--kind", "vllm")
    place = stage.gateway(upstream=engine.endpoint, max_in_flight=1)
    with place.client() as own, place.client() as other:
        with own.stream("POST", "/v1/slowly", content=b"hold\n") as response:
            pieces = response.iter_raw()  # closes the response when it goes
            next(pieces)
            refused = other.post("/v1/echo", content=b"x")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            assert other.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200
            engine.release()
            assert list(pieces) == []
        until(lambda: other.post("/v1/echo", content=b"x").status_code == 201)
