"""Incremental splitting of a server-sent event stream."""

from __future__ import annotations


class SseSplitter:
    """Incremental splitter of bytes into events.

    Carriage returns are removed, which is safe because JSON never contains a bare one.

    Attributes:
        done: `[DONE]` has arrived. Events that follow it in the same call are dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.done = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes, and return the events that they complete, without their blank lines."""
        if b"\r" in data:
            data = data.replace(b"\r", b"")
        *events, self._rest = (self._rest + data).split(b"\n\n")
        if b"data: [DONE]" in events:
            self.done = True
            events = events[: events.index(b"data: [DONE]") + 1]
        return [event for event in events if event]
