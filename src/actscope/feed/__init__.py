"""The feed: a server of fresh, shuffled activations for trainers. A generator keeps its buffer in shared memory full.

    generator process  --rows-->  windows in shared memory  --claims-->  HTTP, or the memory itself on the same machine

`actscope feed` runs the server. `FeedClient`, `AsyncFeedClient` and `FeedDataset` read from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.feed.client.async_client import AsyncFeedClient
    from actscope.feed.client.client import FeedClient
    from actscope.feed.client.dataset import FeedDataset
    from actscope.feed.settings import FeedSettings

__all__ = ["AsyncFeedClient", "FeedClient", "FeedDataset", "FeedSettings"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "AsyncFeedClient": "actscope.feed.client.async_client:AsyncFeedClient",
        "FeedClient": "actscope.feed.client.client:FeedClient",
        "FeedDataset": "actscope.feed.client.dataset:FeedDataset",
        "FeedSettings": "actscope.feed.settings:FeedSettings",
    },
)
