"""Incremental splitting of a server-sent event stream, and whole answers, with bounds on their sizes."""

from __future__ import annotations

import aiohttp

from actscope.errors import UpstreamError

#: Maximum size in bytes of one event of an engine's stream. One event may hold a long prompt's token ids or log-probabilities.
MOST_EVENT_BYTES = 64 << 20
#: Maximum size in bytes of an answer that is read as a whole.
MOST_ANSWER_BYTES = 256 << 20


class SseSplitter:
    """Incremental splitter of bytes into events.

    Carriage returns are removed, which is safe because JSON never contains a bare one.

    Attributes:
        done: `[DONE]` has arrived. Events that follow it in the same call are dropped.
    """

    def __init__(self, most_event_bytes: int = MOST_EVENT_BYTES) -> None:
        self._rest = bytearray()
        self._searched = 0
        self._most = most_event_bytes
        self.done = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes, and return the events that they complete, without their blank lines.

        Takes time linear in the bytes, in whatever pieces they come.

        Raises:
            UpstreamError: An event is too large.
        """
        if b"\r" in data:
            data = data.replace(b"\r", b"")
        events = self._with_rest(data) if self._rest else self._divided(data)  # usually nothing is left
        if b"data: [DONE]" in events:
            self.done = True
            events = events[: events.index(b"data: [DONE]") + 1]
        return [event for event in events if event]

    def _with_rest(self, data: bytes) -> list[bytes]:
        self._rest += data
        if self._rest.find(b"\n\n", self._searched) >= 0:
            return self._divided(bytes(self._rest))
        self._leave(self._rest)
        return []

    def _divided(self, data: bytes) -> list[bytes]:
        *events, rest = data.split(b"\n\n")
        self._leave(bytearray(rest))
        return events

    def _leave(self, rest: bytearray) -> None:
        self._rest, self._searched = rest, max(len(rest) - 1, 0)
        if len(rest) > self._most:
            raise UpstreamError(f"an event of more than {self._most} bytes")


async def read_whole(response: aiohttp.ClientResponse, most_bytes: int = MOST_ANSWER_BYTES) -> bytes:
    """Return the body of an answer.

    Raises:
        UpstreamError: It is larger than `most_bytes`, found out before more than that is held.
        aiohttp.ClientError: The connection broke.
    """
    announced = response.content_length or 0
    body = bytearray()
    while announced <= most_bytes and len(body) <= most_bytes:
        piece = await response.content.readany()
        if not piece:
            return bytes(body)
        body += piece
    raise UpstreamError(f"an answer of more than {most_bytes} bytes")
