"""Shared-memory transport: claims rows over a unix socket, and maps the feed's memory that holds them.

Rows are copied once, from shared memory into the trainer's batch. A grant is held until it is released. A thread sends
heartbeats, which renew the leases.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import msgspec

from actscope.errors import FeedEnded, FeedError, FeedNotReady, RequestRefused, UpstreamError
from actscope.feed.buffer.layout import Layout
from actscope.feed.client.shared_rows import SharedRows
from actscope.feed.messages import (
    FROM_CONSUMER,
    TO_CONSUMER,
    Beat,
    Claim,
    Ended,
    FromConsumer,
    Granted,
    Hello,
    NotReady,
    Refused,
    Release,
    Welcome,
)

log = logging.getLogger("actscope.feed")

#: Seconds until a connection, or the answer to a claim after its own wait, counts as failed.
_CONNECT_S = 10.0
_ANSWER_S = 30.0


class ShmTransport:
    """One connection to a feed. `claim`, `release` and `close` are thread-safe; claims run one at a time.

    Attributes:
        welcome: Facts about the feed.
        rows: Reader of the feed's memory.

    Raises:
        FeedNotReady: The feed has no memory yet.
        UpstreamError: The feed refused the connection.
        OSError: Nothing listens at `path`.
    """

    def __init__(self, path: str, token: str, group: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(_CONNECT_S)
        try:
            self._connection.connect(path)
            FROM_CONSUMER.send(self._connection, Hello(token, group))
            self.welcome, fd = self._received_welcome()
            self.rows = SharedRows(fd, Layout(*msgspec.structs.astuple(self.welcome.memory)), self.welcome.seed)
        except BaseException:
            self._connection.close()
            raise
        self._connection.settimeout(None)
        self._sending, self._asking = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="actscope-beat", daemon=True).start()

    def _received_welcome(self) -> tuple[Welcome, int]:
        message, fd = TO_CONSUMER.receive_with(self._connection)
        if isinstance(message, NotReady):
            raise FeedNotReady(message.message)
        if not isinstance(message, Welcome) or fd is None:
            raise UpstreamError("the feed refused this consumer: its token is wrong, or there are too many consumers")
        return message, fd

    # --- claims ---

    def claim(self, n: int, wait: float) -> Granted:
        """Claim the next `n` rows of the group. Raises FeedNotReady, FeedEnded, RequestRefused, FeedError, UpstreamError."""
        with self._asking:
            try:
                self._send(Claim(n, wait))
                self._connection.settimeout(wait + _ANSWER_S)
                answer = TO_CONSUMER.receive(self._connection)
            except BaseException:  # a late answer would be taken for the answer to the next claim
                self.close()
                raise
        if isinstance(answer, Granted):
            self._check(answer, n)
            return answer
        if isinstance(answer, NotReady):
            raise FeedNotReady(answer.message, answer.available)
        if isinstance(answer, Ended):
            raise FeedEnded(answer.message)
        if answer is None:
            self.close()
            raise UpstreamError("the feed has disconnected or does not answer: start it again")
        if isinstance(answer, Refused) and not answer.failed:
            raise RequestRefused(answer.message)
        raise FeedError(getattr(answer, "message", f"expected an answer to a claim, found {answer}"))

    def _check(self, granted: Granted, n: int) -> None:
        """Raise UpstreamError, and disconnect, unless a grant is of at most `n` rows that lie in the memory."""
        layout = self.rows.layout
        for e in granted.extents:
            inside = 0 <= e.window < layout.n_windows and 0 < e.window_rows <= layout.window_rows
            if not inside or e.turn < 0 or e.start < 0 or e.n < 0 or e.start + e.n > e.window_rows:
                self.close()
                raise UpstreamError(f"the feed granted rows outside its memory: {e}")
        if (rows := sum(e.n for e in granted.extents)) > n:
            self.close()
            raise UpstreamError(f"the feed granted {rows} rows, and {n} were claimed")

    def release(self, granted: Granted, *, delivered: bool = True) -> None:
        """Release a grant, counted as delivered or abandoned. Does nothing if the feed is gone."""
        with contextlib.suppress(UpstreamError):  # a feed that is gone holds no grants
            self._send(Release(granted.grant, delivered))

    # --- connection ---

    @property
    def closed(self) -> bool:
        """Return whether `close` was called, or the feed did not answer."""
        return self._closed.is_set()

    def _send(self, message: FromConsumer) -> None:
        try:
            with self._sending:
                FROM_CONSUMER.send(self._connection, message)
        except OSError as error:
            raise UpstreamError("the feed has disconnected: start it again") from error

    def _beat(self) -> None:
        while not self._closed.wait(max(0.02, self.welcome.lease_seconds / 4)):
            try:
                self._send(Beat())
            except UpstreamError:
                return

    def close(self) -> None:
        """Disconnect. The feed counts rows still held as abandoned. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self.rows.close()
