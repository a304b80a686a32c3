"""Batch after batch in one HTTP answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actscope.errors import FeedError
from actscope.feed.buffer.allocator import Grant
from actscope.feed.server.responses import GrantedRows, disconnected, log, send_rows
from actscope.feed.server.service import Service


class StreamResponse(Response):
    """Sends `batches` batches of `batch_size` rows; the first one is granted already. Holds one batch at a time."""

    media_type = "application/octet-stream"

    def __init__(
        self,
        feed: Service,
        sites: Sequence[int],
        group: str,
        batch_size: int,
        batches: int,
        wait: float,
        first: Grant,
        owner: object,
    ) -> None:
        self._feed, self._sites, self._group, self._wait = feed, sites, group, wait
        self._batch_size, self._batches = batch_size, batches
        self._grant: Grant | None = first
        self._owner = owner
        self.status_code, self.background, self.body = 200, None, b""
        self.init_headers(GrantedRows(feed.desk, first, sites).headers())
        del self.headers["content-length"]  # how long it will be is not known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_batches(send, gone)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("a client did not read its stream: its connection is ended")
        finally:
            gone.cancel()
            self._release(delivered=False)
            self._feed.leave()

    async def _send_batches(self, send: Send, gone: asyncio.Future[None]) -> None:
        for number in range(self._batches):
            if number and not await self._next(gone):
                return
            assert self._grant is not None
            short = self._grant.n_rows < self._batch_size
            batch = GrantedRows(self._feed.desk, self._grant, self._sites)
            await send_rows(await batch.gathered(), send, self._feed.settings.lease_seconds)
            self._release(delivered=not gone.done())
            if short or gone.done() or self._feed.stopping:
                return

    async def _next(self, gone: asyncio.Future[None]) -> bool:
        """Take the next batch, unless the client goes first."""
        taking = asyncio.ensure_future(
            self._feed.desk.take(self._group, self._batch_size, self._owner, wait=self._wait)
        )
        waiting: set[asyncio.Future[Any]] = {taking, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            return False
        try:
            self._grant = taking.result()
        except FeedError:
            return False
        return True

    def _release(self, *, delivered: bool) -> None:
        grant, self._grant = self._grant, None
        if grant is not None:
            self._feed.desk.release(grant.id, self._owner, delivered=delivered)
