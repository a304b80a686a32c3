"""Composition of a running feed: broker, generator supervisor, shared-memory server and state file."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from actscope.errors import SettingsError
from actscope.feed.answers import BufferFacts, GeneratorFacts
from actscope.feed.buffer.position import Position
from actscope.feed.server.broker import Broker
from actscope.feed.server.checkpoint import StateFile
from actscope.feed.server.generator_process import Supervisor
from actscope.feed.server.shm_server import ShmServer
from actscope.feed.settings import FeedSettings

log = logging.getLogger("actscope.feed")


class Service:
    """One feed. All its parts run on one event loop once `running` is entered."""

    def __init__(self, settings: FeedSettings) -> None:
        self.settings = settings
        self._file = StateFile.open(settings) if settings.state else None
        start = _start(settings, self._file)
        self.broker: Broker
        self._start = start
        self._supervisor: Supervisor | None = None
        self._shm_server: ShmServer | None = None
        self.started = time.monotonic()
        self._in_flight = 0
        self.stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all parts of the feed for the duration of the block."""
        self.broker = Broker(self.settings, self._start, check=self._file.check if self._file else lambda facts: None)
        self._supervisor = Supervisor(self.broker)
        self._shm_server = ShmServer(self.broker, self.settings.token)
        tasks = [asyncio.create_task(work) for work in self._work(self._supervisor, self._shm_server)]
        for task in tasks:
            task.add_done_callback(self._report)
        try:
            yield
        finally:
            self.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._shm_server.close()
            await self._supervisor.close()
            await self._remember()
            if self.broker.memory is not None:
                self.broker.memory.close()

    async def _remember(self) -> None:
        if self._file is None:
            return
        try:
            await asyncio.to_thread(self._file.write, self.broker.buffer.lowest_position(), self.broker.facts)
        except OSError as error:
            self._file.failure = str(error)
            log.error("the feed's position could not be written to its state file: %s", error)

    def _work(self, supervisor: Supervisor, shm_server: ShmServer) -> list[Coroutine[Any, Any, None]]:
        work = [supervisor.run(), shm_server.run(), self.broker.keep_time()]
        return [*work, self._file.keep(self.broker)] if self._file is not None else work

    @property
    def position(self) -> Position | None:
        """Return the position of the slowest group, or None before the model is loaded."""
        broker: Broker | None = getattr(self, "broker", None)
        return None if broker is None or broker.facts is None else broker.buffer.lowest_position()

    @property
    def state_failure(self) -> str:
        """Return why the state file is out of date, or an empty text."""
        return "" if self._file is None else self._file.failure

    def enter(self) -> bool:
        """Reserve one of `max_requests` slots; False if none is free. Call `leave` after the last byte was sent."""
        if self._in_flight >= self.settings.max_requests:
            return False
        self._in_flight += 1
        return True

    @property
    def in_flight(self) -> int:
        """Return the number of requests for rows in progress."""
        return self._in_flight

    def leave(self) -> None:
        """Free the slot of a request."""
        self._in_flight -= 1

    def stop(self) -> None:
        """Stop serving: fail the broker, so that waiting requests end."""
        self.stopping = True
        if not self.broker.failure:
            self.broker.fail("it is shutting down")

    def _report(self, task: asyncio.Task[None]) -> None:
        """Log a part that failed, and fail the broker, so that no consumer waits for it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the feed failed", exc_info=error)
            self.broker.fail(f"one of its tasks failed ({type(error).__name__}: {error})")

    @property
    def state(self) -> str:
        """State of the feed: loading, filling, serving, ended or failed."""
        broker = self.broker
        if broker.failure:
            return "failed"
        if broker.facts is None:
            return "loading"
        if broker.buffer.available(""):
            return "serving"
        return "ended" if broker.buffer.ended else "filling"

    @property
    def socket_path(self) -> str:
        """Path of the unix socket for consumers on the same machine."""
        assert self._shm_server is not None
        return str(self._shm_server.path)

    @property
    def n_consumers(self) -> int:
        """Number of connected consumers on the same machine."""
        return self._shm_server.n_consumers if self._shm_server else 0

    def buffer_stats(self) -> BufferFacts:
        """Return the size of the buffer and the rows that a new group could claim."""
        return {"buffer_size": self.settings.buffer_rows, "valid_samples": self.broker.buffer.available("")}

    def generator_stats(self) -> GeneratorFacts:
        """Return runtime statistics of the generator."""
        assert self._supervisor is not None
        return self._supervisor.stats()


def _start(settings: FeedSettings, file: StateFile | None) -> Position:
    """Return the start position: that of `resume`, else that of the state file, else the beginning."""
    found = Position.parse(settings.resume) if settings.resume else file.position if file else None
    if found is None:
        return Position(settings.seed)
    if found.seed != settings.seed:
        raise SettingsError(
            f"feed resume {found}: it has seed {found.seed}, but the setting is seed {settings.seed}: use the same seed"
        )
    if settings.epochs and found.epoch >= settings.epochs:
        raise SettingsError(f"feed resume {found}: all {settings.epochs} epochs have been served")
    return found
