"""Listening socket and uvicorn configuration: uvloop and httptools, with bounded request heads and bounded shutdown time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from actscope.errors import SettingsError
from actscope.serving.settings import ServingSettings


def listen(settings: ServingSettings) -> socket.socket:
    """Open the listening socket of a server.

    Args:
        settings: `host` and `port`; port 0 takes a free one (see `getsockname`).

    Returns:
        A non-blocking TCP socket that already listens, with SO_REUSEADDR set. The caller owns it.

    Raises:
        SettingsError: The address or the port cannot be bound.
    """
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


def uvicorn_config(app: Any, settings: ServingSettings) -> uvicorn.Config:
    """Return the uvicorn configuration shared by all servers: no access log, no Server or Date header, no WebSockets.

    Args:
        app: The ASGI application.
        settings: `max_head_bytes` bounds request line plus headers, `shutdown_seconds` the graceful shutdown (rounded to
            whole seconds, at least 1).
    """
    return uvicorn.Config(
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


def _bounded_protocol(limit: int) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol class with a limit on request line plus headers in bytes. httptools itself has none."""

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
