"""Feed as a torch dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from torch import Tensor
from torch.utils.data import IterableDataset

from actscope.errors import SettingsError, UnknownArgument
from actscope.feed.client.client import FeedClient
from actscope.feed.client.options import ClientOptions, IterOptions
from actscope.near_miss import hint


class FeedDataset(IterableDataset[Tensor]):
    """Batches of a feed for `torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=...)`.

    Each worker process is its own consumer in the same group, so workers never receive the same row.

    Args:
        url: Base URL of the feed.
        token: Token of the feed; None reads $ACTSCOPE_TOKEN.
        batch_size: Rows of a batch.
        connect: Further keyword arguments of `FeedClient`.
        **options: Keyword arguments of `FeedClient.iter`.

    Raises:
        UnknownArgument: An option is not one of `FeedClient.iter`.
        SettingsError: `zero_copy` was requested. A DataLoader keeps batches longer than a view is valid.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        batch_size: int,
        connect: ClientOptions | None = None,
        **options: Unpack[IterOptions],
    ) -> None:
        known = [*IterOptions.__annotations__, "batch_size", "connect"]
        for name in options.keys() - set(known):
            raise UnknownArgument(f"FeedDataset has no argument {name!r}{hint(name, known)}")
        if options.get("zero_copy"):
            raise SettingsError(
                "zero_copy cannot be used with a DataLoader, which keeps batches after the next one is requested"
            )
        self._url, self._token = url, token
        self._connect: ClientOptions = {**connect} if connect is not None else {}
        self._batch_size, self._options = batch_size, options

    def __iter__(self) -> Iterator[Tensor]:
        with FeedClient(self._url, self._token, **self._connect) as client:
            yield from client.iter(self._batch_size, **self._options)
