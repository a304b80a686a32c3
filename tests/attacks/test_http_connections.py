"""Connections that say nothing, or that never come to an end, cost a bounded number of files, bytes and seconds."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from support.gateway.stage import TOKEN, Place, Stage
from support.waiting import until

CHUNKED = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
    "transfer-encoding: chunked\r\n\r\n"
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def impatient() -> Iterator[Place]:
    stage = Stage()
    yield stage.gateway(up=False, head_seconds=0.5, body_seconds=0.5, max_unauthenticated=20)
    stage.close()


def connected(place: Place) -> socket.socket:
    host, port = place.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(place: Place, template: str = CHUNKED) -> bytes:
    return template.format(host=place.url.removeprefix("http://"), token=TOKEN).encode()


def rss_mib(pid: int) -> float:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 2**20


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx: y"])
def test_a_client_that_does_not_finish_its_head_is_cut_off(impatient: Place, said: bytes) -> None:
    with connected(impatient) as silent:
        silent.sendall(said)
        assert silent.recv(1000)[:12] in (b"", b"HTTP/1.1 408")


def test_a_client_that_does_not_finish_its_second_head_is_cut_off(impatient: Place) -> None:
    for said in (b"\r\n", b"GET / HTTP/1.1\r\n"):
        with connected(impatient) as silent:
            silent.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert silent.recv(1000).startswith(b"HTTP/1.1 200")
            silent.sendall(said)
            assert silent.recv(1000)[:12] in (b"", b"HTTP/1.1 408")


def test_a_head_that_drips_is_cut_off(impatient: Place) -> None:
    """One byte at a time does not move its deadline."""
    answer = None
    with connected(impatient) as dripping:
        dripping.settimeout(0.05)
        for byte in b"GET / HTTP/1.1\r\nx: " + b"x" * 200:
            dripping.sendall(bytes([byte]))
            with suppress(TimeoutError):
                answer = dripping.recv(1000)
                break
    assert answer is not None
    assert answer[:12] in (b"", b"HTTP/1.1 408")


def test_a_body_that_stops_is_cut_off(impatient: Place) -> None:
    with connected(impatient) as silent:
        silent.sendall(head(impatient) + b"5\r\nhello\r\n")
        assert silent.recv(1000)[:12] in (b"", b"HTTP/1.1 408")


def test_an_answer_that_takes_long_is_not_cut_off(stage: Stage) -> None:
    """The deadlines are the client's. An engine may take as long as it wants."""
    stage.engine()
    place = stage.gateway(head_seconds=0.3, body_seconds=0.3)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "scripted": {"delay": 0.7}}
    with place.client() as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_silent_connections_do_not_lock_others_out(stage: Stage) -> None:
    """With 256 files: 400 silent connections, and every other client is served."""
    stage.wrapper = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    place = stage.gateway(up=False)
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(connected(place))
        for _ in range(5):
            with place.client(timeout=5) as client:
                assert client.get("/health").status_code == 200


def test_the_oldest_silent_connection_makes_room(stage: Stage) -> None:
    """A client with the token keeps its connection."""
    place = stage.gateway(up=False, max_unauthenticated=20, head_seconds=300)
    with ExitStack() as stack:
        client = stack.enter_context(place.client())
        assert client.get("/health").status_code == 200
        first = stack.enter_context(connected(place))
        for _ in range(25):
            last = stack.enter_context(connected(place))
        assert first.recv(1) == b""
        last.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert last.recv(100).startswith(b"HTTP/1.1 200")
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "piece",
    [b"x-trailer: " + b"y" * 60_000 + b"\r\n", b"y" * 65_536],
    ids=["many trailers", "one endless trailer"],
)
def test_trailers_without_end_cost_no_memory(stage: Stage, piece: bytes) -> None:
    """Also with the token. The connection ends long before 200 MB."""
    place = stage.gateway(up=False)
    with connected(place) as sender:
        sender.sendall(head(place) + b"0\r\nx-first: ")
        before = rss_mib(stage.gateway_process.pid)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for _ in range(200_000_000 // len(piece)):
                sender.sendall(piece)
        assert rss_mib(stage.gateway_process.pid) - before < 64


def test_chunk_extensions_without_end_are_cut_off(stage: Stage) -> None:
    place = stage.gateway(up=False)
    with connected(place) as sender, pytest.raises(OSError, match=r"reset|Broken pipe"):
        sender.sendall(head(place))
        for _ in range(5000):
            sender.sendall(b"1;" + b"x" * 50_000 + b"\r\ny\r\n")


def test_chunks_of_one_byte_are_a_body_like_any_other(stage: Stage) -> None:
    stage.engine()
    place = stage.gateway()
    text = b'{"messages": [{"role": "user", "content": "' + b"hi " * 500 + b'"}], "max_tokens": 1}'
    with place.client() as client:
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/chat/completions", content=(bytes([b]) for b in text), headers=headers)
        assert answer.status_code == 200


@pytest.mark.parametrize("token", [TOKEN, "wrong-token"])
def test_a_client_can_read_why_its_large_body_is_refused(stage: Stage, token: str) -> None:
    """The connection is closed, and the answer is not lost by that while the client still sends."""
    place = stage.gateway(up=False, max_body_bytes=8 << 20)
    with httpx.Client(base_url=place.url, trust_env=False, timeout=20) as client:
        for _ in range(5):
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            answer = client.post("/v1/chat/completions", content=b"x" * (20 << 20), headers=headers)
            assert answer.status_code == (413 if token == TOKEN else 401)
            assert answer.headers["connection"] == "close"


def test_a_closed_connection_ends_soon(stage: Stage) -> None:
    """A client that keeps sending after its answer is not read for ever."""
    place = stage.gateway(up=False)
    with connected(place) as sender:
        host = place.url.removeprefix("http://")
        sender.sendall(f"POST /v1/models HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1000000000\r\n\r\n".encode())
        assert sender.recv(1000).startswith(b"HTTP/1.1 401")

        def ended() -> bool:
            try:
                sender.sendall(b"x")
            except OSError:
                return True
            return False

        until(ended)


def test_clients_that_all_connect_before_one_speaks_are_served(stage: Stage) -> None:
    """As load generators do: every connection is open before the first request is sent. None is closed for another."""
    place = stage.gateway(up=False)
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with ExitStack() as opened:
        clients = [opened.enter_context(connected(place)) for _ in range(600)]
        for client in clients:
            client.sendall(request)
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
