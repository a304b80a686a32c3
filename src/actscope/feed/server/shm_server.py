"""Server for consumers on the same machine: hands out the shared memory and grants on its rows over a unix socket.

The socket lies in the runtime directory, which only this user can enter. A peer must run as this user and send the token. A
consumer that disconnects, or is silent for `lease_seconds`, loses the rows that it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import socket
import stat
import struct
import time
from pathlib import Path

from actscope.errors import ActscopeError, FeedEnded, FeedError, FeedNotReady, RequestRefused
from actscope.feed.buffer.allocator import Grant
from actscope.feed.messages import (
    FROM_CONSUMER,
    TO_CONSUMER,
    Beat,
    Claim,
    Ended,
    FromConsumer,
    Granted,
    Hello,
    Memory,
    NotReady,
    Refused,
    Release,
    Stretch,
    ToConsumer,
    Welcome,
)
from actscope.feed.server.broker import Broker
from actscope.runtime.directory import runtime_dir

log = logging.getLogger("actscope.feed")

_BACKLOG = 64
_HELLO_S = 5.0
_PAUSE_S = 0.5
#: Age in seconds from which a socket that nobody listens on is removed. A feed binds its socket before it listens.
_ORPHAN_AGE_S = 60.0


class ShmServer:
    """Unix-socket server for consumers on the same machine. `path` is the socket's path."""

    def __init__(self, broker: Broker, token: str) -> None:
        self._broker, self._token = broker, token.encode()
        directory = runtime_dir()
        _sweep(directory)
        self.path = directory / f"feed-{secrets.token_hex(8)}.sock"
        self._listener = _listening(self.path)
        self._consumers: set[asyncio.Task[None]] = set()

    @property
    def n_consumers(self) -> int:
        """Number of connected consumers."""
        return len(self._consumers)

    async def run(self) -> None:
        """Accept consumers. Never returns."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # for example out of descriptors: retry after other consumers disconnect
                log.error("a consumer could not be accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._consumers) >= self._broker.settings.max_consumers or not _is_ours(connection):
                connection.close()
                continue
            task = loop.create_task(self._serve(connection))
            self._consumers.add(task)
            task.add_done_callback(self._consumers.discard)

    async def close(self) -> None:
        """Disconnect all consumers and remove the socket."""
        self.path.unlink(missing_ok=True)
        self._listener.close()
        for task in self._consumers:
            task.cancel()
        await asyncio.gather(*self._consumers, return_exceptions=True)

    async def _serve(self, connection: socket.socket) -> None:
        consumer = _Consumer(self._broker, connection)
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = await consumer.receive()
            if not isinstance(hello, Hello) or not hmac.compare_digest(hello.token.encode(), self._token):
                return
            await consumer.serve(hello.group)
        except (OSError, TimeoutError, ActscopeError) as error:
            log.debug("a consumer's connection ended: %s", error)
        finally:
            rows = self._broker.release_owner(consumer)
            if rows:
                log.warning("a consumer disconnected while it held %d rows: they are counted as abandoned", rows)
            connection.close()


class _Consumer:
    """Connection of one consumer. It owns the grants that it claims."""

    def __init__(self, broker: Broker, connection: socket.socket) -> None:
        self._broker, self._connection = broker, connection
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    async def receive(self) -> FromConsumer | None:
        """Return the next message; None when the client has disconnected."""
        while (message := FROM_CONSUMER.take(self._buffer)) is None:
            data = await self._loop.sock_recv(self._connection, 1 << 16)
            if not data:
                return None
            self._buffer += data
        return message

    async def _send(self, message: ToConsumer) -> None:
        await self._loop.sock_sendall(self._connection, TO_CONSUMER.pack(message))

    async def serve(self, group: str) -> None:
        """Serve the client until it disconnects. A pending claim is cancelled so that rows are never granted to a dead client."""
        if not await self._welcome():
            return
        waiting: asyncio.Task[None] | None = None
        try:
            while (message := await self.receive()) is not None:
                self._broker.buffer.heard(self, time.monotonic())
                if isinstance(message, Claim):
                    if waiting is not None:
                        await waiting
                    waiting = await self._answer_at_once(group, message)
                elif isinstance(message, Release):
                    self._broker.release(message.grant, self, delivered=message.delivered)
                elif not isinstance(message, Beat):
                    return
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    async def _answer_at_once(self, group: str, claim: Claim) -> asyncio.Task[None] | None:
        """Answer at once if the rows are ready, without a task. Else return a task that waits for them."""
        try:
            grant = self._broker.claim(group, claim.n, self, lease=self._broker.settings.lease_seconds)
        except ActscopeError:
            return self._loop.create_task(self._answer(group, claim))
        await self._send(_granted(grant))
        return None

    async def _answer(self, group: str, claim: Claim) -> None:
        try:
            await self._send(await self._claim(group, claim))
        except Exception as error:  # disconnect, so that the client does not wait forever
            log.error("a claim could not be answered: %s: %s", type(error).__name__, error)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    async def _welcome(self) -> bool:
        """Send the memory and the feed's facts; False, with a NotReady, while the model is being loaded."""
        broker = self._broker
        facts, memory = broker.facts, broker.memory
        if facts is None or memory is None:
            await self._send(NotReady("the model is being loaded", 0))
            return False
        layout = memory.layout
        welcome = Welcome(
            memory=Memory(layout.n_windows, layout.window_rows, layout.n_sites, layout.width, layout.dtype),
            sites=facts.sites,
            model=facts.model,
            revision=facts.revision,
            seed=broker.settings.seed,
            shuffle=broker.settings.shuffle,
            most_rows=broker.settings.most_rows,
            lease_seconds=broker.settings.lease_seconds,
        )
        readable = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            TO_CONSUMER.send_with(
                self._connection, welcome, readable
            )  # never blocks: the first message fits the socket's buffer
        finally:
            os.close(readable)
        return True

    async def _claim(self, group: str, claim: Claim) -> ToConsumer:
        """Return the response to a claim, waiting for rows if the claim allows it."""
        lease = self._broker.settings.lease_seconds
        try:
            taking = self._broker.take(group, claim.n, self, wait=claim.wait, lease=lease)
            return _granted(await taking)
        except FeedNotReady as error:
            return NotReady(str(error), error.available)
        except FeedEnded as error:
            return Ended(str(error))
        except (RequestRefused, FeedError) as error:
            return Refused(str(error), failed=isinstance(error, FeedError))


def _granted(grant: Grant) -> Granted:
    stretches = [
        Stretch(e.window, e.generation, e.epoch, e.number, e.turn, e.window_rows, e.start, e.n) for e in grant.extents
    ]
    return Granted(grant.id, stretches, str(grant.position), str(grant.next), grant.missed)


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink()
        raise FeedError(f"{path}: cannot listen there ({error}): set ACTSCOPE_RUNTIME_DIR to a shorter path") from error
    return listener


def _sweep(directory: Path) -> None:
    """Remove the sockets of feeds that were killed: no process listens on them. A young one is left alone."""
    for path in directory.glob("feed-*.sock"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            old = time.time() - status.st_mtime > _ORPHAN_AGE_S
            if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid() and old and not _has_listener(path):
                path.unlink()


def _has_listener(path: Path) -> bool:
    """Return whether a process listens on a socket. A full backlog counts as one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _is_ours(connection: socket.socket) -> bool:
    """Return whether the peer process runs as this user. Makes the connection non-blocking."""
    connection.setblocking(False)
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", data)
    return bool(uid == os.geteuid())
