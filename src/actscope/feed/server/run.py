"""Entry point of the feed's server: binds the port and runs one uvicorn server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from fastapi import FastAPI

from actscope.feed.server.app import create_app
from actscope.feed.server.service import Service
from actscope.feed.settings import FeedSettings
from actscope.runtime.directory import runtime_dir
from actscope.serving.listening import PatientServer, listen, uvicorn_config


class FeedServer(PatientServer):
    """uvicorn server that ends requests waiting for rows when it shuts down. `settings` has the actual port."""

    def __init__(self, app: FastAPI, service: Service, sock: socket.socket) -> None:
        super().__init__(uvicorn_config(app, service.settings))
        self.service = service
        self.settings = service.settings
        self.on_started: Callable[[FeedSettings], None] | None = None
        self._socket = sock

    def run_here(self) -> None:
        """Serve until SIGINT, SIGTERM or `should_exit`."""
        self.run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, then call `on_started` with the settings."""
        await super().startup(sockets)
        if self.on_started is not None and self.started:
            self.on_started(self.settings)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests that wait for rows, then shut down."""
        self.service.stop()
        await super().shutdown(sockets)


def open_server(settings: FeedSettings) -> FeedServer:
    """Bind the port and create the server, which is not running yet.

    Raises:
        SettingsError: The port cannot be bound, or the position to resume from does not fit the settings.
        RingError: There is no private runtime directory for the socket of consumers on this machine.
    """
    runtime_dir()  # refuses one that is not private before anything runs
    sock = listen(settings)
    try:
        service = Service(replace(settings, port=sock.getsockname()[1]))
    except BaseException:
        sock.close()
        raise
    return FeedServer(create_app(service), service, sock)


def serve(settings: FeedSettings, on_started: Callable[[FeedSettings], None] | None = None) -> None:
    """Run the feed until SIGINT or SIGTERM. `on_started` is called with the settings, which have the actual port."""
    server = open_server(settings)
    server.on_started = on_started
    server.run_here()
