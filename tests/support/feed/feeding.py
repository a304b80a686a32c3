"""A real feed in a thread of the test: the built-in model in its generator process, a real port, real shared memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actscope.feed.client.client import FeedClient
from actscope.feed.server.run import FeedServer, open_server
from actscope.feed.settings import FeedSettings

TOKEN = "a token of the tests"
#: Small and quick; texts of the built-in dataset, read by the built-in model on one thread.
SMALL: dict[str, Any] = {
    "port": 0, "token": TOKEN, "sites": "2", "texts": 200, "chunk_texts": 16, "context": 64, "buffer_rows": 4000, "windows": 2,
    "threads": 1, "shutdown_seconds": 2.0,
}  # fmt: skip


@dataclass(frozen=True)
class Feeding:
    """A running feed."""

    server: FeedServer

    @property
    def url(self) -> str:
        return self.server.settings.url

    def client(self, **options: Any) -> FeedClient:
        return FeedClient(self.url, TOKEN, **({"timeout": 60.0} | options))

    @property
    def generator_pid(self) -> int:
        pid = self.server.service.generator_stats()["pid"]
        assert isinstance(pid, int)
        return pid


@contextmanager
def feeding(**settings: Any) -> Iterator[Feeding]:
    """A feed that answers; it need not have rows yet."""
    server = open_server(FeedSettings(**(SMALL | settings)))
    started = threading.Event()
    server.on_started = lambda taken: started.set()
    thread = threading.Thread(target=server.run_here)
    thread.start()
    try:
        assert started.wait(30)
        yield Feeding(server)
    finally:
        server.should_exit = True
        thread.join()
