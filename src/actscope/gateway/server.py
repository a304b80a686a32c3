"""Running the gateway: one uvicorn on uvloop and httptools, with bounded heads and a prompt end."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from actscope.errors import SettingsError
from actscope.gateway.app import create_app
from actscope.gateway.settings import GatewaySettings


class GatewayServer(uvicorn.Server):
    """uvicorn that ends open event streams first when it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: GatewaySettings, sock: socket.socket) -> None:
        super().__init__(config)
        self.app = app
        self.settings = settings
        self.on_started: Callable[[GatewaySettings], None] | None = None
        self._socket = sock

    def run_here(self) -> None:
        """Serve until SIGINT, SIGTERM or `should_exit`."""
        self.run(sockets=[self._socket])

    async def serve_here(self) -> None:
        """The same, on the running event loop."""
        await self.serve(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: no collection in mid-stream need look at it again
        if self.on_started is not None and self.started:
            self.on_started(self.settings)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.gateway.streams.end_all()
        await super().shutdown(sockets)


def open_server(settings: GatewaySettings) -> GatewayServer:
    """Listen (so that the port is known and taken), and make the server. Raises SettingsError when it cannot."""
    sock = _listen(settings)
    settings = replace(settings, port=sock.getsockname()[1])
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=_bounded_protocol(settings.max_head_bytes),
        ws="none",
        loop="uvloop",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
    return GatewayServer(config, app, settings, sock)


def serve(settings: GatewaySettings, on_started: Callable[[GatewaySettings], None] | None = None) -> None:
    """Run the gateway until it is told to stop. `on_started` gets the settings with the port that was taken."""
    server = open_server(settings)
    server.on_started = on_started
    server.run_here()


def _listen(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"{settings.host}:{settings.port}: cannot listen: {error.strerror}; choose another port"
        ) from error
    sock.listen(2048)
    sock.setblocking(False)
    return sock


def _bounded_protocol(limit: int) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with an end to the request line and headers, which httptools does not have."""

    class BoundedHead(HttpToolsProtocol):
        _head_bytes = 0
        _in_head = True

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._in_head and self._head_bytes > limit and not self.transport.is_closing():
                self.send_400_response(f"The request's head is larger than {limit} bytes.")

        def on_message_begin(self) -> None:
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._head_bytes = 0
            super().on_headers_complete()

    return BoundedHead
