"""Limit on the lines that strangers can write into the log of a server: uvicorn warns of each malformed request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

#: Beginnings of uvicorn's warnings about the requests of clients, who need no token for them.
_ABOUT_CLIENTS = ("Invalid HTTP request", "Unsupported upgrade request", "No supported WebSocket library")
_EVERY_SECONDS = 60.0


class ClientWarnings(logging.Filter):
    """Log filter that passes each kind of warning about clients' requests at most once a minute, with the count of the others.

    All other records pass unchanged.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        kind = next((begin for begin in _ABOUT_CLIENTS if str(record.msg).startswith(begin)), None)
        if kind is None:
            return True
        now = self._clock()
        since, left_out = self._passed.get(kind, (float("-inf"), 0))
        if now - since < _EVERY_SECONDS:
            self._passed[kind] = since, left_out + 1
            return False
        self._passed[kind] = now, 0
        if left_out:
            record.msg = f"{record.msg} ({left_out} more in the {now - since:.0f} s before)"
        return True


_filter = ClientWarnings()


def limit_client_warnings() -> None:
    """Install the filter on uvicorn's logger, once in a process."""
    logging.getLogger("uvicorn.error").addFilter(_filter)
