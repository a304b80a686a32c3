"""Shared-memory transport: claims rows over a unix socket and reads them from the feed's memory.

Rows are copied once, from shared memory into the trainer's batch. A grant is held until it is released. A thread sends
heartbeats, which renew the leases.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import warnings
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from actscope.errors import FeedEnded, FeedError, FeedNotReady, RequestRefused, UpstreamError
from actscope.feed.buffer.gather import labels_of, served, unchanged
from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
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
    Stretch,
    Welcome,
)

log = logging.getLogger("actscope.feed")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CONNECT_S = 10.0
_ANSWER_S = 30.0


class ShmTransport:
    """One connection to a feed. `claim`, `release` and `close` are thread-safe; claims run one at a time."""

    def __init__(self, path: str, token: str, group: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(_CONNECT_S)
        try:
            self._connection.connect(path)
            FROM_CONSUMER.send(self._connection, Hello(token, group))
            self.welcome, fd = self._received_welcome()
        except BaseException:
            self._connection.close()
            raise
        self._connection.settimeout(None)
        layout = Layout(*msgspec.structs.astuple(self.welcome.memory))
        self._memory = FeedMemory.attach(fd, layout)
        self._planes = [[self._plane(w, s) for s in range(layout.n_sites)] for w in range(layout.n_windows)]
        self._sending, self._asking = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="actscope-beat", daemon=True).start()

    def _received_welcome(self) -> tuple[Welcome, int]:
        message, fd = TO_CONSUMER.receive_with(self._connection)
        if isinstance(message, NotReady):
            raise FeedNotReady(message.message)
        if not isinstance(message, Welcome) or fd is None:
            raise UpstreamError("the feed does not take this consumer in: its token is wrong, or there are too many")
        return message, fd

    def _plane(self, window: int, site: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*not writable.*"
            )  # mapped read-only; the tensor is never written
            return torch.from_numpy(self._memory.plane(window, site)).view(DTYPES[self._memory.layout.dtype])

    # --- claims ---

    def claim(self, n: int, wait: float) -> Granted:
        """Claim the next `n` rows of the group. Raises FeedNotReady, FeedEnded, RequestRefused, FeedError, UpstreamError."""
        with self._asking:
            try:
                self._send(Claim(n, wait))
                self._connection.settimeout(wait + _ANSWER_S)
                answer = TO_CONSUMER.receive(self._connection)
            except BaseException:  # a late answer would be taken for that of the next claim
                self.close()
                raise
        if isinstance(answer, Granted):
            return answer
        if isinstance(answer, NotReady):
            raise FeedNotReady(answer.message, answer.available)
        if isinstance(answer, Ended):
            raise FeedEnded(answer.message)
        if answer is None:
            self.close()
            raise UpstreamError("the feed has gone, or does not answer: start it again")
        if isinstance(answer, Refused) and not answer.failed:
            raise RequestRefused(answer.message)
        raise FeedError(getattr(answer, "message", f"an answer that makes no sense: {answer}"))

    def release(self, granted: Granted, *, delivered: bool = True) -> None:
        """Release a grant, counted as delivered or abandoned. Does nothing if the feed is gone."""
        with contextlib.suppress(UpstreamError):  # a feed that is gone holds no grants
            self._send(Release(granted.grant, delivered))

    def whole(self, granted: Granted) -> bool:
        """Return whether the rows read so far are intact. False if the lease expired and their window is being refilled."""
        return unchanged(self._memory, granted.extents)

    # --- rows ---

    def read(self, granted: Granted, sites: Sequence[int], out: Tensor) -> None:
        """Copy the rows of a grant to `out`: [n, width] for one site, [n, sites, width] for several."""
        begin = 0
        for extent in granted.extents:
            part = out[begin : begin + extent.n]
            for place, site in enumerate(sites):
                self._copy(extent, site, part if len(sites) == 1 else part[:, place])
            begin += extent.n

    def views(self, granted: Granted, site: int) -> Tensor:
        """Return the rows [n, width] of one site: a view of shared memory if they are contiguous, else a copy.

        A view is valid until the grant is released. It is read-only: writing to it crashes the process.
        """
        first = granted.extents[0]
        if len(granted.extents) == 1 and first.turn == 0:
            return self._planes[first.window][site][first.start : first.start + first.n]
        out = torch.empty(sum(e.n for e in granted.extents), self._memory.layout.width, dtype=self.dtype)
        self.read(granted, [site], out)
        return out

    def labels(self, granted: Granted) -> np.ndarray:
        """Return the label of each row, ROW_LABEL [n]."""
        return labels_of(self._memory, granted.extents, self.welcome.seed)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self._memory.layout.dtype]

    @property
    def layout(self) -> Layout:
        return self._memory.layout

    def _copy(self, extent: Stretch, site: int, out: Tensor) -> None:
        plane, stop = self._planes[extent.window][site], extent.start + extent.n
        if extent.turn == 0:
            out.copy_(plane[extent.start : stop])
            return
        order = served(
            extent.window_rows, extent.start, stop, self.welcome.seed, extent.epoch, extent.number, extent.turn
        )
        torch.index_select(plane, 0, torch.from_numpy(order), out=out)  # via a temporary tensor: 3 to 7 times slower

    # --- connection ---

    def _send(self, message: FromConsumer) -> None:
        try:
            with self._sending:
                FROM_CONSUMER.send(self._connection, message)
        except OSError as error:
            raise UpstreamError("the feed has gone: start it again") from error

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
        self._planes = []
        self._memory.close()
