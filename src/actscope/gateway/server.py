"""Running the gateway: a uvicorn server that ends open event streams at shutdown."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from actscope.gateway.app import create_app
from actscope.gateway.settings import GatewaySettings
from actscope.near_miss import hinted
from actscope.serving.listening import PatientServer, listen, uvicorn_config


class GatewayServer(PatientServer):
    """uvicorn server that ends open event streams before a graceful shutdown, which would otherwise wait for them.

    Attributes:
        app: The gateway's application.
        settings: Its settings. `port` is the port that is bound, never 0.
        on_started: Called with `settings` once the server accepts connections, or None.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: GatewaySettings, sock: socket.socket) -> None:
        super().__init__(config)
        self.app = app
        self.settings = settings
        self.on_started: Callable[[GatewaySettings], None] | None = None
        self._socket = sock

    def run_here(self) -> None:
        """Serve until SIGINT, SIGTERM or `should_exit`. Blocks; runs an event loop of its own."""
        self.run(sockets=[self._socket])

    async def serve_here(self) -> None:
        """Serve on the running event loop, until SIGINT, SIGTERM or `should_exit`."""
        await self.serve(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, exempt loaded objects from garbage collection, then call `on_started`."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # objects loaded by now are permanent: exempt them from collections that would run during streams
        if self.on_started is not None and self.started:
            self.on_started(self.settings)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all event streams, then shut down."""
        self.app.state.gateway.streams.end_all()
        await super().shutdown(sockets)


@hinted
def open_server(settings: GatewaySettings) -> GatewayServer:
    """Bind the port and create a server that is ready to run.

    Args:
        settings: Settings of the gateway. Port 0 takes a free one.

    Returns:
        The server; `settings.port` of it is the port that is bound.

    Raises:
        SettingsError: The address or the port cannot be bound.
    """
    sock = listen(settings)
    settings = replace(settings, port=sock.getsockname()[1])
    app = create_app(settings)
    return GatewayServer(uvicorn_config(app, settings, settings.max_in_flight), app, settings, sock)


@hinted
def serve(settings: GatewaySettings, on_started: Callable[[GatewaySettings], None] | None = None) -> None:
    """Run the gateway until SIGINT or SIGTERM. Blocks.

    Args:
        settings: Settings of the gateway. Port 0 takes a free one.
        on_started: Called once the server accepts connections, with the settings and the port that is bound.

    Raises:
        SettingsError: The address or the port cannot be bound.
    """
    server = open_server(settings)
    server.on_started = on_started
    server.run_here()
