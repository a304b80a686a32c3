"""An engine that answers nonsense: the client is told in OpenAI's shape, and the gateway's memory is bounded.

The engine here is a stand-in that sends bytes which no real engine can be made to send.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.gateway.stage import Place, Stage, chat

FIRST = b'data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}\n\n'


class Hostile(BaseHTTPRequestHandler):
    """Sends what `answer` says: a list of pieces, or a function that makes them."""

    protocol_version = "HTTP/1.1"
    kind = "text/event-stream"
    status = 200
    pieces: Any = ()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send(200, "application/json", [b'{"data": []}'])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(self.status, self.kind, self.pieces)

    def _send(self, status: int, kind: str, pieces: Any) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def hostile() -> Iterator[type[Hostile]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    Hostile.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield Hostile
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def place(stage: Stage, hostile: type[Hostile]) -> Place:
    return stage.gateway(upstream=hostile.address)  # type: ignore[attr-defined]


@pytest.fixture
def client(place: Place) -> Iterator[httpx.Client]:
    with place.client(timeout=60) as client:
        yield client


CHOICE = '"index":0,"delta":{"content":"a"},"finish_reason":null'
MALFORMED = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"choices":[{"index":0,"delta":{"content":"\xff"},"finish_reason":"\xff"}]}',
    "choices as text": b'{"choices":"x"}',
    "a choice as text": b'{"choices":["x"]}',
    "an index as text": b'{"choices":[{"index":"x"}]}',
    "a negative index": b'{"choices":[{"index":-1}]}',
    "an endless index": b'{"choices":[{"index":' + b"9" * 5000 + b"}]}",
    "token ids as text": f'{{"choices":[{{{CHOICE},"token_ids":"abc"}}]}}'.encode(),
    "token ids that are too large": f'{{"choices":[{{{CHOICE},"token_ids":[{2**70}]}}]}}'.encode(),
    "negative token ids": f'{{"choices":[{{{CHOICE},"token_ids":[-5]}}]}}'.encode(),
    "a prompt of objects": f'{{"prompt_token_ids":[{{}}],"choices":[{{{CHOICE}}}]}}'.encode(),
    "a reason that is a list": b'{"choices":[{"index":0,"delta":{},"finish_reason":[1]}]}',
    "deep nesting": b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


def error_of(response: httpx.Response) -> dict[str, Any]:
    last = [event for event in response.text.split("\n\n") if event][-1]
    assert last.startswith("data: ")
    found: dict[str, Any] = json.loads(last.removeprefix("data: "))["error"]
    return found


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_event_ends_the_stream_with_an_error(
    client: httpx.Client, hostile: type[Hostile], what: str
) -> None:
    """The stream ends properly, with an error event as the last one, and the request is `failed`."""
    hostile.kind, hostile.status = "text/event-stream", 200
    hostile.pieces = [FIRST, b"data: " + MALFORMED[what] + b"\n\n", b"data: [DONE]\n\n"]
    response = client.post("/v1/chat/completions", json=chat(stream=True, actscope=True, return_token_ids=True))
    assert error_of(response)["code"] == "engine_failed"
    request = response.headers["x-request-id"]
    assert client.get(f"/v1/actscope/requests/{request}").json()["state"] == "failed"


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_answer_is_a_502(client: httpx.Client, hostile: type[Hostile], what: str) -> None:
    hostile.kind, hostile.status, hostile.pieces = "application/json", 200, [MALFORMED[what]]
    response = client.post("/v1/chat/completions", json=chat(actscope=True, return_token_ids=True))
    assert response.status_code in (200, 502)
    if response.status_code == 502:
        assert response.json()["error"]["code"] == "engine_failed"
    else:
        assert what == "deep nesting"  # a field that the gateway does not read


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b'{"error":' + b"[" * 100_000, b"x" * (3 << 20)])
def test_a_malformed_refusal_is_an_error_of_openai(client: httpx.Client, hostile: type[Hostile], body: bytes) -> None:
    hostile.kind, hostile.status, hostile.pieces = "text/plain", 503, [body] if body else []
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("status", [201, 204, 206, 299])
def test_a_success_that_is_none_is_a_502(client: httpx.Client, hostile: type[Hostile], status: int) -> None:
    hostile.kind, hostile.status, hostile.pieces = "application/json", status, [] if status == 204 else [b"{}"]
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_an_answer_without_end_costs_bounded_memory(
    client: httpx.Client, hostile: type[Hostile], stage: Stage, kind: str
) -> None:
    """One event of a gigabyte, and one answer of a gigabyte."""
    piece = b"x" * (1 << 20)
    hostile.kind, hostile.status = kind, 200
    hostile.pieces = (FIRST if kind.startswith("text") and not i else piece for i in range(1024))
    response = client.post("/v1/chat/completions", json=chat(stream=kind.startswith("text")))
    error = error_of(response) if kind.startswith("text") else response.json()["error"]
    assert error["code"] == "engine_failed"
    assert "more than" in error["message"]
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{stage.gateway_process.pid}/status").read_text().splitlines()
    )
    assert int(status["VmHWM"].split()[0]) < 1 << 20  # KiB
