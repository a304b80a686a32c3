"""Supervisor of the generator process: starts it, reads its messages, kills it when it hangs, restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec

from actscope.errors import ActscopeError, FeedError
from actscope.feed.answers import GeneratorFacts
from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.messages import (
    FROM_GENERATOR,
    TO_GENERATOR,
    Failed,
    Filled,
    FillWindow,
    FromGenerator,
    Loaded,
    Loading,
    Memory,
    Progress,
    Start,
)
from actscope.feed.server.broker import Broker

log = logging.getLogger("actscope.feed")

_WATCH_S = 0.25
_GRACE_S = 2.0
_FIRST_WORD_S = 60.0  # starting Python may take long on a busy machine
_SECRET = "-" * 8


class _GeneratorProcess:
    """One generator: its process, its socket, and the thread that reads from it.

    `hear` is called on that thread with each message, and with None when the socket closes.
    """

    def __init__(self, settings: bytes, hear: Callable[[_GeneratorProcess, FromGenerator | None], None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "actscope.feed.generator", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.connection = ours
        self.heard = time.monotonic() + _FIRST_WORD_S
        TO_GENERATOR.send(ours, Start(settings))
        threading.Thread(target=self._listen, args=(hear,), name="actscope-generator", daemon=True).start()
        threading.Thread(target=self._overhear, name="actscope-generator-log", daemon=True).start()

    def _listen(self, hear: Callable[[_GeneratorProcess, FromGenerator | None], None]) -> None:
        try:
            while (message := FROM_GENERATOR.receive(self.connection)) is not None:
                self.heard = time.monotonic()
                hear(self, message)
        except ActscopeError as error:
            log.error("a message of the generator cannot be read: %s", error)
        hear(self, None)

    def _overhear(self) -> None:
        """Copy the output of the generator and its libraries to the log."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                log.warning("generator: %s", line.decode(errors="replace").rstrip())

    def end(self, grace_s: float = 0.0) -> int:
        """Close the socket, which ends the process; kill it after `grace_s` seconds. Return its exit code."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        try:
            return self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)  # its child processes too
            return self.process.wait()


class Supervisor:
    """Supervisor that keeps a generator filling the broker's windows. Runs on the event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._settings = broker.settings
        self._loop = asyncio.get_running_loop()
        self._child: _GeneratorProcess | None = None
        self._order: FillWindow | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._allocating: asyncio.Task[FeedMemory] | None = None
        self._moved = 0.0
        self._closed = False
        self._last_words: Failed | None = None
        self.deaths = 0
        self.deaths_in_a_row = 0
        self.phase = "starting"
        self.rows_per_second = 0.0
        self.padding = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the generator; None while there is none."""
        return self._child.process.pid if self._child is not None else None

    async def run(self) -> None:
        """Keep a generator running and send it orders, until `close`."""
        self._respawn()
        while not self._closed:
            self._look()
            try:
                async with asyncio.timeout(_WATCH_S):  # `wait_for` of Python 3.11 can lose a cancellation
                    await self._broker.room.wait()
            except TimeoutError:
                continue
            self._broker.room.clear()
            self._send_order()

    async def close(self) -> None:
        """End the generator and its child processes, and start no other."""
        self._closed = True
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.end, _GRACE_S)

    def stats(self) -> GeneratorFacts:
        """Return runtime statistics of the generator (for `GET /stats`)."""
        return {
            "pid": self.pid,
            "phase": self.phase,
            "restarts": self.deaths,
            "rows_per_second": round(self.rows_per_second, 1),
            "padding": round(self.padding, 4),
            "window": self._order.window if self._order else None,
        }

    # --- on the event loop ---

    def _spawn(self) -> None:
        settings = msgspec.json.encode(replace(self._settings, token=_SECRET, scrape_token=""))
        self._last_words, self._order, self.phase = None, None, "starting"
        self._child = _GeneratorProcess(settings, self._hear_from_thread)

    def _hear_from_thread(self, child: _GeneratorProcess, message: FromGenerator | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hear, child, message)

    def _hear(self, child: _GeneratorProcess, message: FromGenerator | None) -> None:
        if child is not self._child:
            return
        if message is None:
            self._go(self._on_death(child))
        elif isinstance(message, Loading):
            self.phase = message.what
        elif isinstance(message, Loaded):
            self._go(self._on_loaded(child, message))
        elif isinstance(message, Progress):
            self._moved = time.monotonic()
            self.padding = message.padding
            self._broker.buffer.progress(message.window, message.rows)
        elif isinstance(message, Filled):
            self._on_filled(message)
        elif isinstance(message, Failed):
            self._last_words = message
            self._loop.call_later(_GRACE_S, self._kill, child)  # in case it does not end by itself

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_loaded(self, child: _GeneratorProcess, facts: Loaded) -> None:
        try:
            memory = await self._memory_for(facts)
        except ActscopeError as error:
            await self._give_up(str(error))
            return
        if child is not self._child:
            return  # it has died in the meantime
        layout = memory.layout
        described = Memory(layout.n_windows, layout.window_rows, layout.n_sites, layout.width, layout.dtype)
        self.phase = "waiting"
        try:
            TO_GENERATOR.send_with(child.connection, described, memory.fd)
        except OSError:
            return  # it has died; its reading thread reports that
        self._send_order()
        self._broker.notify()

    async def _memory_for(self, facts: Loaded) -> FeedMemory:
        """Return the buffer's memory, which is created for the first generator and used by all later ones.

        Raises:
            SettingsError: The memory cannot be allocated.
            FeedError: The width is not the expected one, or the model or the dataset has changed.
        """
        broker, settings = self._broker, self._settings
        broker.check(facts)
        if broker.memory is not None and broker.facts is not None:
            _check_same(broker.facts, facts)
            return broker.memory
        if settings.width and settings.width != facts.width:
            raise FeedError(
                f"rows of {facts.model} have width {facts.width}, expected {settings.width} (setting: width)"
            )
        layout = Layout(settings.windows, settings.window_rows, len(facts.sites), facts.width, settings.dtype)
        self.phase = f"allocating {layout.total_bytes / 1e9:.2f} GB"
        if self._allocating is None:  # only once, even if the generator dies in the meantime
            making = asyncio.to_thread(FeedMemory.create, layout, huge_pages=settings.huge_pages, numa=settings.numa)
            self._allocating = self._loop.create_task(making)
        memory = await self._allocating
        if broker.memory is None:
            broker.open(facts, memory)
        return memory

    def _on_filled(self, message: Filled) -> None:
        self._order, self.phase = None, "waiting"
        self.deaths_in_a_row = 0
        if message.seconds > 0:
            self.rows_per_second = message.n_rows / message.seconds
        self._broker.filled(message)
        self._send_order()

    def _send_order(self) -> None:
        """Order the next window, if one is free and the generator is ready."""
        broker, child = self._broker, self._child
        if child is None or broker.memory is None or self._order is not None or self.phase != "waiting":
            return
        fill = broker.buffer.begin()
        if fill is None:
            return
        broker.memory.generations[fill.window] = fill.generation  # before any of its rows is written
        mark = (fill.mark.chunk, fill.mark.skip) if fill.mark else None
        self._order = FillWindow(fill.window, fill.generation, fill.epoch, fill.number, mark)
        self.phase, self._moved = "filling", time.monotonic()
        with contextlib.suppress(OSError):
            TO_GENERATOR.send(child.connection, self._order)

    def _look(self) -> None:
        """Kill a generator that sends no heartbeat, or makes no progress with its window."""
        child, now = self._child, time.monotonic()
        if child is None:
            return
        silent = now - child.heard >= self._settings.heartbeat_seconds
        if silent or (self._order is not None and now - self._moved >= self._settings.stall_seconds):
            what = "sends no heartbeat" if silent else "makes no progress"
            log.error("the generator (pid %d) %s: it is killed", child.process.pid, what)
            self._kill(child)
            child.heard = self._moved = now

    def _kill(self, child: _GeneratorProcess) -> None:
        if child is self._child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, 9)  # its child processes too

    async def _on_death(self, child: _GeneratorProcess) -> None:
        self._child, self._order = None, None
        code = await asyncio.to_thread(child.end, _GRACE_S)
        self._broker.buffer.abandon()
        if self._closed:
            return
        words = self._last_words
        why = words.message if words else f"the generator ended (exit code {code})"
        self.deaths += 1
        self.deaths_in_a_row += 1
        never_loaded = words is not None and self._broker.facts is None  # a restart would fail the same way
        if never_loaded or (words and words.fatal) or self.deaths_in_a_row > self._settings.max_restarts:
            await self._give_up(why)
            return
        log.error("%s; it is restarted, and continues with the same rows (restart %d)", why, self.deaths)
        self._loop.call_later(min(0.1 * 2**self.deaths_in_a_row, 10.0), self._respawn)

    def _respawn(self) -> None:
        if not self._closed and self._child is None:
            try:
                self._spawn()
            except OSError as error:
                self._go(self._give_up(f"the generator cannot be started: {error}"))

    async def _give_up(self, why: str) -> None:
        """Fail the feed for good, and end the generator."""
        log.error("the feed has failed: %s", why)
        self.phase = "failed"
        self._broker.fail(why)
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.end)


def _check_same(first: Loaded, now: Loaded) -> None:
    """Raise FeedError unless a restarted generator reads the same texts with the same model."""
    for name in ("revision", "sites", "width", "dtype", "fingerprint", "n_texts"):
        if getattr(first, name) != getattr(now, name):
            raise FeedError(
                f"the model or the dataset has changed while the feed ran: {name} was {getattr(first, name)!r}, "
                f"is {getattr(now, name)!r}; restart the feed"
            )
