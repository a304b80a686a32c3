"""The generator's end of the socket to its server: heartbeats and orders, each on a thread of its own. Loads nothing heavy."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time

import msgspec

from actscope.errors import EngineError
from actscope.feed.messages import (
    FROM_GENERATOR,
    TO_GENERATOR,
    Beat,
    FillWindow,
    FromGenerator,
    Memory,
    Start,
)
from actscope.feed.settings import FeedSettings

_BEAT_S = 1.0


class ServerLink:
    """The other end of the socket. `tell` is for any thread; orders are read on one of their own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self.memories: queue.Queue[tuple[Memory, int]] = queue.Queue()
        self.orders: queue.Queue[FillWindow] = queue.Queue()

    def tell(self, message: FromGenerator) -> None:
        with self._sending:
            FROM_GENERATOR.send(self._connection, message)

    def start(self) -> FeedSettings:
        """The first message; then orders and heartbeats run on threads."""
        message = TO_GENERATOR.receive(self._connection)
        if not isinstance(message, Start):
            raise EngineError(f"the feed's generator: expected its settings, found {type(message).__name__}")
        settings = msgspec.json.decode(message.settings, type=FeedSettings)
        threading.Thread(target=self._hear, name="actscope-orders", daemon=True).start()
        threading.Thread(target=self._beat, name="actscope-beat", daemon=True).start()
        return settings

    def _hear(self) -> None:
        while True:
            message, fd = TO_GENERATOR.receive_with(self._connection)
            if message is None:
                os._exit(0)  # the server has gone: at once, whatever the model is doing
            if isinstance(message, Memory) and fd is not None:
                self.memories.put((message, fd))
            elif isinstance(message, FillWindow):
                self.orders.put(message)

    def _beat(self) -> None:
        while True:
            try:
                self.tell(Beat())
            except OSError:
                os._exit(0)
            time.sleep(_BEAT_S)
