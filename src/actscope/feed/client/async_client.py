"""Feed client for asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from actscope.feed.answers import FeedAbout, FeedStats, SiteVectors
from actscope.feed.client.client import Batch, FeedClient
from actscope.feed.client.options import Transport
from actscope.near_miss import hinted_class

log = logging.getLogger("actscope.feed")

P = ParamSpec("P")
T = TypeVar("T")


@hinted_class
class AsyncFeedClient:
    """`FeedClient` with coroutines. Each call runs on a thread; concurrent calls run one after the other.

    A cancelled call still runs to its end, and the next call waits for it. The rows it took are lost, and `position` is reset to
    the position before them.

    Args:
        url, token, group, transport, timeout: As for `FeedClient`.

    Raises:
        SettingsError: `transport` is unknown, or `url` is not of the form http://host:port.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:6970",
        token: str | None = None,
        *,
        group: str = "default",
        transport: Transport = "auto",
        timeout: float = 300.0,
    ) -> None:
        self._client = FeedClient(url, token, group=group, transport=transport, timeout=timeout)
        self._lock = asyncio.Lock()

    async def _run(self, do: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        await self._lock.acquire()
        before = self._client.position
        work = asyncio.ensure_future(asyncio.to_thread(do, *arguments, **options))
        work.add_done_callback(lambda done: self._lock.release())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: self._lose(done, before))
            raise

    def _lose(self, done: asyncio.Future[T], before: str) -> None:
        if not done.cancelled() and done.exception() is None and self._client.position != before:
            self._client.position = before
            log.warning("a cancelled call had taken rows: they are lost")

    @property
    def position(self) -> str:
        """Position of the row after the last one returned; empty before the first row."""
        return self._client.position

    async def wait_for_data(self, num_samples: int = 1, timeout: float | None = None) -> FeedStats:
        """As `FeedClient.wait_for_data`."""
        return await self._run(self._client.wait_for_data, num_samples, timeout)

    async def get_stats(self) -> FeedStats:
        """As `FeedClient.get_stats`."""
        return await self._run(self._client.get_stats)

    async def get_statistics(self) -> dict[str, SiteVectors]:
        """As `FeedClient.get_statistics`."""
        return await self._run(self._client.get_statistics)

    async def about(self) -> FeedAbout:
        """As `FeedClient.about`."""
        return await self._run(self._client.about)

    async def refresh(self) -> int:
        """As `FeedClient.refresh`."""
        return await self._run(self._client.refresh)

    async def get_activations(
        self, num_samples: int, *, sites: str = ""
    ) -> list[list[float]] | list[list[list[float]]]:
        """As `FeedClient.get_activations`."""
        return await self._run(self._client.get_activations, num_samples, sites=sites)

    async def get_activations_tensor(
        self, num_samples: int, *, sites: str = "", device: str | torch.device | None = None, out: Tensor | None = None
    ) -> Tensor:
        """As `FeedClient.get_activations_tensor`."""
        return await self._run(self._client.get_activations_tensor, num_samples, sites=sites, device=device, out=out)

    async def take(
        self,
        num_samples: int,
        *,
        sites: str = "",
        labels: bool = False,
        out: Tensor | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """As `FeedClient.take`."""
        return await self._run(self._client.take, num_samples, sites=sites, labels=labels, out=out, timeout=timeout)

    async def iter(
        self,
        batch_size: int,
        *,
        sites: str = "",
        device: str | torch.device | None = None,
        prefetch: int = 2,
        normalize: bool | float = False,
        drop_last: bool = False,
        zero_copy: bool = False,
    ) -> AsyncIterator[Tensor]:
        """As `FeedClient.iter`."""
        batches = self._client.iter(
            batch_size,
            sites=sites,
            device=device,
            prefetch=prefetch,
            normalize=normalize,
            drop_last=drop_last,
            zero_copy=zero_copy,
        )
        try:
            while (batch := await self._run(lambda: next(batches, None))) is not None:
                yield batch
        finally:
            await self._run(batches.close)  # type: ignore[attr-defined]  # a generator; closing it joins its thread

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._run(self._client.close)

    async def __aenter__(self) -> AsyncFeedClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
