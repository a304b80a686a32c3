"""A feed as a torch dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from actscope.errors import SettingsError
from actscope.feed.client.client import FeedClient


class FeedDataset(IterableDataset[Tensor]):
    """Batches of a feed for `torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=...)`.

    Every worker process is a consumer of its own in the same group: no row comes twice, whatever their number. `options` are
    those of `FeedClient.iter`, `connect` those of `FeedClient`.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        batch_size: int,
        connect: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if options.get("zero_copy"):
            raise SettingsError(
                "a DataLoader passes batches on after the next one was asked for: zero_copy cannot be used with it"
            )
        self._url, self._token, self._connect = url, token, dict(connect or {})
        self._batch_size, self._options = batch_size, options

    def __iter__(self) -> Iterator[Tensor]:
        with FeedClient(self._url, self._token, **self._connect) as client:
            yield from client.iter(self._batch_size, **self._options)
