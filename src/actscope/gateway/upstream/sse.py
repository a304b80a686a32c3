"""Server-sent events, taken apart as they come."""

from __future__ import annotations


class SseSplitter:
    """Splits bytes into events (without their blank line). `done` once `[DONE]` has come; what follows is dropped.

    Carriage returns are removed: JSON never has a bare one.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.done = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete by now."""
        if b"\r" in data:
            data = data.replace(b"\r", b"")
        *events, self._rest = (self._rest + data).split(b"\n\n")
        if b"data: [DONE]" in events:
            self.done = True
            events = events[: events.index(b"data: [DONE]") + 1]
        return [event for event in events if event]
