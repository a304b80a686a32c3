"""Connections to an engine that it closes between two requests cost no request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from actscope.gateway.upstream.connection import Connection

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Closing:
    """A server that answers the first request of a connection, and closes it when the next one comes.

    That is what a client sees that sends on a connection while its end is on the way. `answers` false: it answers none.
    """

    def __init__(self, answers: bool = True) -> None:
        self._answers = answers
        self.connections = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._read(reader)
        if self._answers:
            writer.write(ANSWER)
            await writer.drain()
            await self._read(reader)
        writer.close()

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
