"""Server-sent event stream of one request, for any authorized client: from the start, or resumed after an event id."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actscope.gateway.api.payloads import event_bytes
from actscope.gateway.scores.request_log import RequestLog
from actscope.serving.errors import Problem

#: Size in bytes at which a piece for a client that is behind ends. The last event of a piece may exceed it.
_PIECE_BYTES = 64 * 1024

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class OpenStreams:
    """Registry of the open event streams, with a limit on their number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def admit(self) -> None:
        """Raise Problem (429) if the limit is reached."""
        if len(self._tasks) >= self._limit:
            message = f"at most {self._limit} event streams may be open at once: close one"
            raise Problem(429, message, code="too_many_streams", headers={"Retry-After": "1"})

    def add(self, task: asyncio.Task[None]) -> None:
        """Register the task of a stream until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end_all(self) -> None:
        """End all streams immediately, for shutdown. Clients may reconnect with Last-Event-ID."""
        for task in list(self._tasks):
            task.cancel()


class EventStream(Response):
    """Response that sends the events of a log from a cursor on. A slow client never blocks the log (no back pressure).

    Args:
        log: Log of the request.
        after: Number of events to skip.
        streams: Registry in which the stream is listed while it is open.
        keep_alive_seconds: Time without events after which a comment is sent.
    """

    def __init__(self, log: RequestLog, after: int, streams: OpenStreams, keep_alive_seconds: float) -> None:
        self._log = log
        self._cursor = after
        self._streams = streams
        self._keep_alive_seconds = keep_alive_seconds
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the request has ended, the client disconnects, or `OpenStreams.end_all` is called."""
        work = asyncio.create_task(self._send_all(send))
        self._streams.add(work)
        watch = asyncio.create_task(_until_gone(receive, work))
        try:
            await work
        except asyncio.CancelledError:
            if not work.cancelled():
                work.cancel()
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watch.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": b": watching\n\n", "more_body": True})
        while True:
            while self._cursor < len(self._log.events):
                await send({"type": "http.response.body", "body": self._piece(), "more_body": True})
            if self._log.state != "running":
                break
            if not await self._news():
                await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _piece(self) -> bytes:
        piece = bytearray()
        while self._cursor < len(self._log.events) and len(piece) < _PIECE_BYTES:
            piece += event_bytes(self._log, self._cursor)
            self._cursor += 1
        return bytes(piece)

    async def _news(self) -> bool:
        """Wait for a change of the log. Return False if there was none for `keep_alive_seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._keep_alive_seconds):
                await self._log.changed()
                return True
        return False


async def _until_gone(receive: Receive, work: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()


def resume_point(log: RequestLog, last_event_id: str | None, after: int | None) -> int:
    """Return the number of events that the client already has.

    Args:
        log: Log of the request.
        last_event_id: Value of the header Last-Event-ID, which takes precedence.
        after: Value of the query parameter `after`.

    Raises:
        Problem: The id is not a number (400), or beyond the end of the log (410).
    """
    text = last_event_id if last_event_id else "0" if after is None else str(after)
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Problem(
            400, f"Last-Event-ID: expected a number, found {text[:40]!r}", param="Last-Event-ID", code="invalid_value"
        )
    point = int(text)
    if point > len(log.events):
        raise Problem(
            410,
            f"event {point} of request {log.request} is not in the log: start again without Last-Event-ID",
            code="gone",
        )
    return point
