"""Connections that an engine closes between two requests, or does not accept at once, cost no request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from actscope.gateway.upstream import connection as connection_module
from actscope.gateway.upstream.connection import Connection

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Closing:
    """A server that answers the first request of a connection, and closes it when the next one comes.

    That is what a client sees that sends on a connection while its end is on the way. `answers` false: it answers none.
    """

    def __init__(self, answers: bool = True) -> None:
        self._answers = answers
        self.connections = 0
        self._serving: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def listening(self, listener: socket.socket | None = None) -> AsyncIterator[str]:
        listener = listener or socket.create_server(("127.0.0.1", 0))
        server = await asyncio.start_server(self._serve, sock=listener)
        async with server:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.get_running_loop().create_future()
        self._serving.append(ended)
        self.connections += 1
        with contextlib.suppress(ConnectionError):
            await self._read(reader)
            if self._answers:
                writer.write(ANSWER)
                await writer.drain()
                await self._read(reader)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set_result(None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)


async def status_of(connection: Connection) -> int:
    async with await connection.send("POST", "/v1/chat/completions", b"{}") as response:
        assert await response.read() == b"ok"
        return response.status


async def test_a_request_on_a_connection_that_the_engine_has_closed_is_sent_again() -> None:
    """Also where several are kept that are all closed."""
    server = Closing()
    async with server.listening() as address:
        connection = Connection(address)
        try:
            assert await asyncio.gather(*(status_of(connection) for _ in range(5))) == [200] * 5
            assert server.connections == 5
            assert [await status_of(connection) for _ in range(5)] == [200] * 5
        finally:
            await connection.close()


async def test_a_request_that_a_new_connection_does_not_answer_is_not_repeated() -> None:
    """The engine may have read it."""
    server = Closing(answers=False)
    async with server.listening() as address:
        connection = Connection(address)
        try:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await status_of(connection)
            assert server.connections == 1
        finally:
            await connection.close()


async def test_a_body_that_comes_as_a_stream_is_not_sent_again() -> None:
    """Part of it is gone."""

    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    async with Closing().listening() as address:
        connection = Connection(address)
        try:
            assert await status_of(connection) == 200
            with pytest.raises(aiohttp.ClientError):
                await connection.send("POST", "/v1/embeddings", body())
        finally:
            await connection.close()


async def test_a_request_that_an_engine_with_a_full_queue_does_not_accept_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel drops what a full queue of new connections cannot hold, and says nothing."""
    monkeypatch.setattr(connection_module, "_CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        address = listener.getsockname()
        waiting.enter_context(socket.create_connection(address))  # it fills the queue
        connection = Connection(f"http://127.0.0.1:{address[1]}")
        try:
            asked = asyncio.create_task(status_of(connection))
            await asyncio.wait([asked], timeout=0.5)
            assert not asked.done(), "the first attempt has ended, and another goes on"
            async with Closing().listening(listener):
                assert await asked == 200
                waiting.close()
                await connection.close()
        finally:
            await connection.close()


async def test_an_engine_that_never_accepts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        waiting.enter_context(socket.create_connection(listener.getsockname()))
        connection = Connection(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await connection.send("POST", "/v1/chat/completions", b"{}")
        finally:
            await connection.close()
