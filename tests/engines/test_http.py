"""What the engines' HTTP servers share: who may connect, and how large a body may be."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actscope.engines.http import answering_errors, json_response, listening, read_body
from actscope.errors import ActscopeError, RequestRefused, RingError


def test_a_socket_is_for_its_user_only_takes_connections_at_once_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    before = os.umask(0o022)
    try:
        with listening(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_path_that_no_socket_can_have_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RingError, match="ACTSCOPE_RUNTIME_DIR"), listening(tmp_path / ("x" * 200)):
        pass


def test_a_socket_that_is_there_already_is_another_servers_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with listening(path):
        with pytest.raises(RingError), listening(path):
            pass
        assert path.exists()


class Routes:
    @answering_errors
    async def echo(self, http: Request) -> Response:
        return json_response(len(await read_body(http, limit=1 << 20)))

    @answering_errors
    async def busy(self, http: Request) -> Response:
        raise RequestRefused("32 requests wait already", code="overloaded", param="messages")

    @answering_errors
    async def wrong(self, http: Request) -> Response:
        raise ActscopeError("that is wrong")


async def test_errors_have_openais_form_and_a_status_of_their_own() -> None:
    routes = Routes()
    app = Starlette(
        routes=[Route(f"/{name}", getattr(routes, name), methods=["POST"]) for name in ("echo", "busy", "wrong")]
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        fits, large = [await client.post("/echo", content=b"x" * n) for n in (1 << 20, (1 << 20) + 1)]
        busy, wrong = await client.post("/busy"), await client.post("/wrong")
    assert fits.json() == 1 << 20
    assert (large.status_code, large.json()["error"]["message"]) == (400, "the body is larger than 1 MiB")
    assert busy.status_code == 429
    assert busy.json()["error"] == {
        "message": "32 requests wait already", "type": "invalid_request_error", "param": "messages", "code": "overloaded"
    }  # fmt: skip
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, None)
