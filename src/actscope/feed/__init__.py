"""The feed: fresh, shuffled activations for trainers, out of a buffer in shared memory that a generator keeps full.

    generator process  --rows-->  windows in shared memory  --claims-->  HTTP, or the memory itself on the same machine

`actscope feed` serves; `FeedClient` and `AsyncFeedClient` take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.feed.client.async_client import AsyncFeedClient
    from actscope.feed.client.client import FeedClient
    from actscope.feed.client.dataset import FeedDataset
    from actscope.feed.settings import FeedSettings

__all__ = ["AsyncFeedClient", "FeedClient", "FeedDataset", "FeedSettings"]

_HOMES = {
    "AsyncFeedClient": "actscope.feed.client.async_client",
    "FeedClient": "actscope.feed.client.client",
    "FeedDataset": "actscope.feed.client.dataset",
    "FeedSettings": "actscope.feed.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actscope.feed' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found
