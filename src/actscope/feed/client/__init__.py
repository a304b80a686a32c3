"""Clients of the feed. They read rows over HTTP, or from shared memory on the same machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.feed.client.async_client import AsyncFeedClient
    from actscope.feed.client.client import Batch, FeedClient
    from actscope.feed.client.dataset import FeedDataset

__all__ = ["AsyncFeedClient", "Batch", "FeedClient", "FeedDataset"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "AsyncFeedClient": "actscope.feed.client.async_client:AsyncFeedClient",
        "Batch": "actscope.feed.client.client:Batch",
        "FeedClient": "actscope.feed.client.client:FeedClient",
        "FeedDataset": "actscope.feed.client.dataset:FeedDataset",
    },
)
