"""Running the gateway: one uvicorn, and a prompt end of the streams that are open."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from actscope.gateway.app import create_app
from actscope.gateway.settings import GatewaySettings
from actscope.serving.listening import listen, uvicorn_config


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
    sock = listen(settings)
    settings = replace(settings, port=sock.getsockname()[1])
    app = create_app(settings)
    return GatewayServer(uvicorn_config(app, settings), app, settings, sock)


def serve(settings: GatewaySettings, on_started: Callable[[GatewaySettings], None] | None = None) -> None:
    """Run the gateway until it is told to stop. `on_started` gets the settings with the port that was taken."""
    server = open_server(settings)
    server.on_started = on_started
    server.run_here()
