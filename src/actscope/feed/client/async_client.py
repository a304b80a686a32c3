"""The client for asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from actscope.feed.client.client import Batch, FeedClient

log = logging.getLogger("actscope.feed")

T = TypeVar("T")


class AsyncFeedClient:
    """`FeedClient` with coroutines: each call runs on a thread, so that the loop goes on. One call at a time; others wait.

    A call that is cancelled goes on until it is done, and the next one waits for that. Rows that it had taken by then are lost;
    `position` stands before them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = FeedClient(*arguments, **options)
        self._lock = asyncio.Lock()

    async def _run(self, do: Callable[..., T], *arguments: Any, **options: Any) -> T:
        await self._lock.acquire()
        before = self._client.position
        work = asyncio.ensure_future(asyncio.to_thread(do, *arguments, **options))
        work.add_done_callback(lambda done: self._lock.release())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: self._lose(done, before))
            raise

    def _lose(self, done: asyncio.Future[Any], before: str) -> None:
        if not done.cancelled() and done.exception() is None and self._client.position != before:
            self._client.position = before
            log.warning("a call that was cancelled had taken rows: they are lost")

    @property
    def position(self) -> str:
        """Where the row after the last one taken stands."""
        return self._client.position

    async def wait_for_data(self, num_samples: int = 1, timeout: float | None = None) -> dict[str, Any]:
        """As `FeedClient.wait_for_data`."""
        return await self._run(self._client.wait_for_data, num_samples, timeout)

    async def get_stats(self) -> dict[str, Any]:
        """As `FeedClient.get_stats`."""
        return await self._run(self._client.get_stats)

    async def get_statistics(self) -> dict[str, dict[str, Any]]:
        """As `FeedClient.get_statistics`."""
        return await self._run(self._client.get_statistics)

    async def about(self) -> dict[str, Any]:
        """As `FeedClient.about`."""
        return await self._run(self._client.about)

    async def refresh(self) -> int:
        """As `FeedClient.refresh`."""
        return await self._run(self._client.refresh)

    async def get_activations(self, num_samples: int, **options: Any) -> list[Any]:
        """As `FeedClient.get_activations`."""
        return await self._run(self._client.get_activations, num_samples, **options)

    async def get_activations_tensor(self, num_samples: int, **options: Any) -> Tensor:
        """As `FeedClient.get_activations_tensor`."""
        return await self._run(self._client.get_activations_tensor, num_samples, **options)

    async def take(self, num_samples: int, **options: Any) -> Batch:
        """As `FeedClient.take`."""
        return await self._run(self._client.take, num_samples, **options)

    async def iter(self, batch_size: int, **options: Any) -> AsyncIterator[Tensor]:
        """As `FeedClient.iter`."""
        batches = self._client.iter(batch_size, **options)
        end = object()
        try:
            while (batch := await self._run(next, batches, end)) is not end:
                assert isinstance(batch, Tensor)
                yield batch
        finally:
            await self._run(batches.close)  # type: ignore[attr-defined]  # a generator, which waits for its thread

    async def close(self) -> None:
        """Leave the feed."""
        await self._run(self._client.close)

    async def __aenter__(self) -> AsyncFeedClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
