"""HTTP connections with limits on size and time, for uvicorn on httptools, which has none of its own.

 connected ──▶ head ──▶ body ──▶ answer ──▶ idle (keep-alive) ──▶ head …
 └ head_seconds ┘ └ body_seconds without a byte ┘

A connection that has not shown the token may be closed to make room for a new one. A connection that is closed before its client
has sent the whole body lingers: what comes is thrown away for a short time, or the client could not read its answer.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from actscope.serving.settings import ServingSettings

#: Key of the function in a request's `scope["state"]` that marks its connection as trusted.
_TRUST: Final = "actscope_trust"
#: Key of the transport of a request's connection in `scope["state"]`.
_TRANSPORT: Final = "actscope_transport"
#: Time that a closed connection has for the rest of its body, and a client without the token for reading its answer.
_LINGER_SECONDS: Final = 2.0
#: Bytes of that rest that are thrown away; then the connection is closed at once.
_LINGER_BYTES: Final = 128 << 20
#: Bytes of a body that may follow its answer without costing the connection: a client often sends a short body after the head.
_UNREAD_BYTES: Final = 64 << 10
#: Bytes around a body (sizes and extensions of chunks, trailers) that each of its bytes allows for, besides `max_head_bytes`.
_FRAMING_PER_BYTE: Final = 8
_SWEEP_SECONDS: Final = 0.5


def trust_connection(scope: Scope) -> None:
    """Mark the connection of a request as one whose client has shown the token. Does nothing under another server."""
    trust = scope.get("state", {}).get(_TRUST)
    if trust is not None:
        trust()


def transport_of(scope: Scope) -> asyncio.Transport | None:
    """Return the transport of a request's connection, which may only be looked at; None under another server."""
    found: asyncio.Transport | None = scope.get("state", {}).get(_TRANSPORT)
    return found


class Crowd:
    """All open connections of one server.

    Connections without the token are limited in number: the oldest one is closed for a new one, so that silent connections
    cannot use up the process's files. Another client is then still served.

    Args:
        most_unauthenticated: Maximum number of connections that have not shown the token.
    """

    def __init__(self, most_unauthenticated: int) -> None:
        self._most_unauthenticated = most_unauthenticated
        self._waiting: dict[BoundedConnection, None] = {}
        self._open: set[BoundedConnection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, connection: BoundedConnection) -> None:
        """Add a new connection."""
        self._open.add(connection)
        self._waiting[connection] = None
        if len(self._waiting) > self._most_unauthenticated:
            next(iter(self._waiting)).drop()
        if self._timer is None:
            self._timer = connection.loop.call_later(_SWEEP_SECONDS, self._sweep, connection.loop)

    def trust(self, connection: BoundedConnection) -> None:
        """Take a connection from those that may be closed for a new one."""
        self._waiting.pop(connection, None)

    def leave(self, connection: BoundedConnection) -> None:
        """Remove a closed connection."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [one for one in self._open if one.deadline <= now]:
            connection.expire()
        self._timer = loop.call_later(_SWEEP_SECONDS, self._sweep, loop) if self._open else None


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, with the limits of `settings`. `bounded_protocol` makes the class that uvicorn instantiates.

    Attributes:
        deadline: Time of the event loop at which the connection expires unless its client does something.
    """

    settings: ServingSettings
    crowd: Crowd
    deadline = math.inf
    _trusted = False
    _in_head = True
    _complete = True
    _head_bytes = _body_bytes = _framing_bytes = _unread_bytes = _in_piece = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        self._real = transport
        super().connection_made(cast(asyncio.Transport, LingeringTransport(transport, self)))
        self.deadline = self.loop.time() + self.settings.head_seconds
        self.crowd.join(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the crowd."""
        self.crowd.leave(self)
        super().connection_lost(exc)

    @property
    def unfinished(self) -> bool:
        """Return whether the client is in the middle of a request."""
        return not self._complete or self._head_bytes > 0

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _answered_early(self) -> bool:
        """Return whether the answer is complete and the body of its request is not."""
        return self.cycle is not None and self.cycle.response_complete and not (self._in_head or self._complete)

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.crowd.leave(self)
        self._real.abort()

    def expire(self) -> None:
        """Close the connection: its client has been silent for too long, or does not read the answer."""
        if self.flow.read_paused and not self.transport.is_closing():
            self.deadline = self.loop.time() + self.settings.body_seconds  # it is the application that does not read
        elif self.transport.is_closing() or not self.unfinished or self._answered_early:
            self.drop()
        else:
            self._end(408, "The request did not arrive in time.")

    def begin_linger(self) -> None:
        """Give the client time to read the answer."""
        if not self._trusted or self.unfinished:
            self.deadline = self.loop.time() + _LINGER_SECONDS

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, unless the connection is closing: then only count them."""
        if self.transport.is_closing():
            self._in_piece += len(data)
            if self._in_piece > _LINGER_BYTES:
                self.drop()
            return
        in_head = self._in_head or self._complete
        self._in_piece = 0
        if in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        self._count(len(data), in_head)

    def _count(self, n: int, began_in_head: bool) -> None:
        if self.transport.is_closing():
            return
        most = self.settings.max_head_bytes
        if self._in_head or self._complete:
            if self._head_bytes > most:
                self._end(431, f"The request's head is larger than {most} bytes.")
            elif self._head_bytes and self.deadline == math.inf and not self._answering:  # an empty line before a head
                self.deadline = self.loop.time() + self.settings.head_seconds
        elif self._answered_early:
            self._unread_bytes += n
            if self._unread_bytes > _UNREAD_BYTES:
                self.transport.close()
        else:
            self.deadline = self.loop.time() + self.settings.body_seconds
            self._framing_bytes += 0 if began_in_head else n - self._in_piece
            if self._framing_bytes > most + _FRAMING_PER_BYTE * self._body_bytes:
                self._end(413, "The request has more bytes around its body than are allowed.")

    def _end(self, status: int, message: str) -> None:
        """Answer with an error, if no answer has begun, and close the connection."""
        if not self._answering or not (self._in_head or self.cycle.response_started):
            phrase = {408: "Request Timeout", 413: "Content Too Large", 431: "Request Header Fields Too Large"}[status]
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(message)}\r\n\r\n{message}".encode())
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Begin to count the time and the bytes of a request's head."""
        self._in_head, self._complete = True, False
        self._body_bytes = self._framing_bytes = 0
        self.deadline = self.loop.time() + self.settings.head_seconds
        super().on_message_begin()
        self.scope["state"][_TRUST] = self._trust
        self.scope["state"][_TRANSPORT] = self._real

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are thrown away."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to count the bytes of a request's body."""
        self._in_head = False
        self._head_bytes = 0
        self.deadline = self.loop.time() + self.settings.body_seconds
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count a piece of the body, and hand it on."""
        self._in_piece += len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock: it is the server's turn."""
        self._complete, self.deadline = True, math.inf
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Keep the connection for another request. If the body of this one has not come to its end, give it a short time."""
        super().on_response_complete()
        if self._answered_early:
            self._unread_bytes, self.deadline = 0, self.loop.time() + _LINGER_SECONDS

    def _trust(self) -> None:
        self._trusted = True
        self.crowd.trust(self)


class LingeringTransport:
    """Transport whose `close` lets the client read the answer first, if it is in the middle of a request.

    Closing a socket with unread bytes resets the connection, and the client may lose an answer that it has not read.
    """

    def __init__(self, transport: asyncio.Transport, connection: BoundedConnection) -> None:
        self._transport = transport
        self._connection = connection
        self._closing = False
        self.write = transport.write

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether `close` was called, or the connection is lost."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection once all answers are sent; see `BoundedConnection.begin_linger`."""
        if self.is_closing():
            return
        self._closing = True
        self._connection.begin_linger()
        if self._connection.unfinished:
            self._connection.flow.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()


def bounded_protocol(settings: ServingSettings, most_unauthenticated: int) -> type[asyncio.Protocol]:
    """Return the class of one server's connections.

    Args:
        settings: Limits of its requests.
        most_unauthenticated: Maximum number of connections that have not shown the token.
    """
    return type("ServedConnection", (BoundedConnection,), {"settings": settings, "crowd": Crowd(most_unauthenticated)})
