"""The generator's side of the socket to its server. Heartbeats and orders have a thread each. Imports no heavy packages."""

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
    """Connection to the server. `tell` is thread-safe. A thread puts received messages into `memories` and `orders`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self.memories: queue.Queue[tuple[Memory, int]] = queue.Queue()
        self.orders: queue.Queue[FillWindow] = queue.Queue()

    def tell(self, message: FromGenerator) -> None:
        """Send a message. Raises OSError when the server is gone."""
        with self._sending:
            FROM_GENERATOR.send(self._connection, message)

    def start(self) -> FeedSettings:
        """Receive the settings, and start the threads for orders and heartbeats. Raises EngineError for another message."""
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
                os._exit(0)  # the server is gone: end at once, even during a forward pass
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
