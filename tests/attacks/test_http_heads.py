"""An engine whose head no client can be given, or whose control API answers nonsense: an error in OpenAI's shape."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.gateway.stage import Place, Stage, chat

from actscope.errors import UpstreamError
from actscope.gateway.upstream.controls import Controls, ReplicaControls, error_code, error_message

ROUTES = {
    "embeddings": ("POST", "/v1/embeddings", {"input": "a"}),
    "completions": ("POST", "/v1/completions", {"prompt": "a"}),
    "chat": ("POST", "/v1/chat/completions", chat()),
    "responses": ("POST", "/v1/responses", {"input": "a"}),
    "messages": ("POST", "/v1/messages", chat(max_tokens=1)),
    "models": ("GET", "/v1/models", None),
    "a model": ("GET", "/v1/models/m", None),
    "probes": ("GET", "/v1/actscope/probes", None),
    "recording": ("GET", "/v1/actscope/recording", None),
    "a mark": ("POST", "/v1/actscope/requests/x/mark", {}),
    "a new probe": ("PUT", "/v1/actscope/probes/x", {"vector": [1.0], "site": "layers.0.resid_post"}),
    "no probe": ("DELETE", "/v1/actscope/probes/x", None),
}
HEADS = {
    "600": b"HTTP/1.1 600 Odd\r\n",
    "999": b"HTTP/1.1 999 Odd\r\n",
    "101": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n",
    "a control character": b"HTTP/1.1 200 OK\r\nretry-after: a\x01b\r\n",
    "no Latin-1": b"HTTP/1.1 200 OK\r\ncontent-type: application/\xe6\x97\xa5\r\n",
    "deep nesting": b"HTTP/1.1 400 Bad\r\n",
}


class Raw(socketserver.StreamRequestHandler):
    """Answers `GET /health`, and everything else with a head that `head` holds and a body that no decoder takes."""

    head = b""
    body = b"[" * 50_000

    def handle(self) -> None:
        first, length = self.rfile.readline(), 0
        while (line := self.rfile.readline().lower()) not in (b"\r\n", b""):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self.rfile.read(length)
        if b" /health" in first or not self.head:
            self.wfile.write(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 12\r\n\r\n{"data": []}')
        else:
            self.wfile.write(
                self.head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(self.body) + self.body
            )


@pytest.fixture(scope="module")
def raw() -> Iterator[str]:
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def place(raw: str) -> Iterator[Place]:
    stage = Stage()
    yield stage.gateway(upstream=raw)
    stage.close()


@pytest.fixture
def client(place: Place) -> Iterator[httpx.Client]:
    with place.client(timeout=30) as client:
        yield client
    Raw.head = b""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_cannot_be_returned_is_a_502(client: httpx.Client, head: str, route: str) -> None:
    """Before, the server of the gateway closed the client's connection without an answer, or answered 101 or 500."""
    Raw.head = HEADS[head]
    method, path, body = ROUTES[route]
    response = client.request(method, path, json=body) if body is not None else client.request(method, path)
    if head == "deep nesting":  # a refusal whose body cannot be read: passed on as it is, or replaced
        assert response.status_code in (400, 502), response.text[:100]
        return
    assert response.status_code == 502, response.text[:100]
    assert response.json()["error"]["code"] == "engine_failed"


class Answering:
    """In place of a connection: answers everything with one status and body."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self.answer = status, body

    async def ask(self, *asked: Any) -> tuple[int, bytes]:
        return self.answer


UNREADABLE = (b"[" * 50_000, b"\xff", b"", b"[]", b"5", b'{"sites": 5, "since": [], "probes": 5, "generation": "x"}')


@pytest.mark.parametrize("body", UNREADABLE)
async def test_a_part_whose_answer_cannot_be_read_is_an_upstream_error(body: bytes) -> None:
    """An engine of several parts has its answers joined, so they are decoded."""
    parts: Any = [Answering(b"{}"), Answering(body)]
    controls = ReplicaControls(parts)
    with pytest.raises(UpstreamError):
        await controls.recording()
    with pytest.raises(UpstreamError):
        await controls.probes()
    with pytest.raises(UpstreamError):
        await ReplicaControls(parts[::-1]).put_probe("x", b"{}")


@pytest.mark.parametrize("body", UNREADABLE[:-1])
async def test_a_mark_is_answered_by_the_engine_whose_answer_can_be_read(body: bytes) -> None:
    controls = Controls([], Answering(body))  # type: ignore[arg-type]
    good = ReplicaControls([Answering(b'{"state": "pending"}')])  # type: ignore[list-item]
    controls._replicas["good"] = (), good
    assert await controls.mark(["x"], b"{}", "gone") == (200, b'{"state": "pending"}')
    with pytest.raises(UpstreamError):
        await controls.recording()


@pytest.mark.parametrize("body", UNREADABLE)
def test_a_refusal_that_cannot_be_read_has_no_code_and_a_fallback_as_message(body: bytes) -> None:
    assert error_code(body) is None
    assert error_message(body) == "the engine gives no reason"
