"""Listening socket and uvicorn configuration: uvloop and httptools, with bounded connections and bounded shutdown time."""

from __future__ import annotations

import logging
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from actscope.errors import SettingsError
from actscope.serving.connections import bounded_protocol
from actscope.serving.log_limit import limit_client_warnings
from actscope.serving.settings import ServingSettings

log = logging.getLogger("actscope.serving")

#: Files that a request needs: the client's connection and the engine's.
_FILES_PER_REQUEST = 2
#: A limit of files that is enough for so many requests is not worth a warning.
_ENOUGH_REQUESTS = 1024


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
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    )  # connections inherit it: clients that vanish are noticed
    try:
        sock.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        sock.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"{settings.host}:{settings.port}: cannot listen: {reason}; choose another host or port"
        ) from error
    sock.listen(2048)
    sock.setblocking(False)
    return sock


class PatientServer(uvicorn.Server):
    """uvicorn server whose application ends in order also after a second Ctrl-C, which only stops the wait for its requests.

    uvicorn alone would skip the application's own end then, cancel it, and log a traceback.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in order at SIGINT and SIGTERM, and at SIGHUP where the process handles it. They are raised again afterwards."""
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            handled = callable(before) and threading.current_thread() is threading.main_thread()
            if handled:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                if handled:
                    signal.signal(signal.SIGHUP, before)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for requests that run unless `force_exit` is set, and end the application."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def uvicorn_config(app: Any, settings: ServingSettings, requests: int = 0) -> uvicorn.Config:
    """Return the uvicorn configuration shared by all servers: no access log, no Server or Date header, no WebSockets.

    Args:
        app: The ASGI application.
        settings: Limits of connections and requests. `shutdown_seconds` bounds the graceful shutdown (rounded to whole
            seconds, at least 1).
        requests: How many requests may run at once. A warning is logged if fewer files than they need may be open, unless
            those are enough for 1,024 requests.

    The soft limit of open files is raised to the hard one: each completion uses two.
    uvicorn's warnings about malformed requests are limited, because any client can cause them.
    """
    limit_client_warnings()
    files = _open_files()
    if files < _FILES_PER_REQUEST * min(requests, _ENOUGH_REQUESTS):
        log.warning(
            "this process may open %d files, which is enough for about %d requests at once, not for %d (--max-in-flight): "
            "raise the hard limit (ulimit -Hn), or lower the number",
            files,
            files // _FILES_PER_REQUEST,
            requests,
        )
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings, min(settings.max_unauthenticated, max(1, files // 4))),
        ws="none",
        loop="uvloop",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )


def _open_files() -> int:
    """Return the number of files that the process may open, after raising it as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 1 << 16) if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted
