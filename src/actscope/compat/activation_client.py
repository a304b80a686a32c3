"""`ActivationClient`: the older activation server's client, over `FeedClient`."""

from __future__ import annotations

from types import TracebackType
from typing import TypedDict

from torch import Tensor

from actscope.errors import SettingsError, UpstreamError
from actscope.feed.answers import FeedAbout, FeedStats
from actscope.feed.client.client import FeedClient


class TensorMetadata(TypedDict):
    """What `get_activations_tensor` says of its tensor."""

    shape: tuple[int, ...]
    dtype: str
    device: str
    num_samples: int
    sites: tuple[str, ...]
    position: str


class ActivationsJson(TypedDict):
    """What `get_activations` returns."""

    activations: list[list[float]] | list[list[list[float]]]
    shape: list[int]
    dtype: str
    num_samples: int


class ActivationClient:
    """Client of a feed, with the calls of the older activation server's. Not thread-safe.

    `FeedClient`, which it wraps, also has iterators with prefetching, labels and views of the feed's memory.

    Args:
        server_url: Base URL of the feed. Its port is 6970 unless it was started with `--port`; the older server's was 8000.
        token: Token that the feed printed at start; None reads $ACTSCOPE_TOKEN.
        timeout: Longest wait of `get_activations` and `get_activations_tensor` for rows, in seconds.
    """

    def __init__(
        self, server_url: str = "http://127.0.0.1:6970", token: str | None = None, *, timeout: float = 300.0
    ) -> None:
        self.feed = FeedClient(server_url.rstrip("/"), token, timeout=timeout)
        """The client that it wraps."""

    def wait_for_data(self, min_samples: int = 100, timeout: float = 60.0) -> bool:
        """Wait until rows are ready.

        Args:
            min_samples: Number of rows.
            timeout: Longest wait in seconds.

        Returns:
            Whether they are ready. False also if the feed could not be reached in that time.

        Raises:
            FeedError: The feed has failed or ended.
            SettingsError: The feed refuses the token.
        """
        try:
            self.feed.wait_for_data(min_samples, timeout)
        except UpstreamError:
            return False
        return True

    def get_activations_tensor(
        self, num_samples: int = 10, *, batch_size: int | None = None
    ) -> tuple[Tensor, TensorMetadata]:
        """Return the next rows as a tensor, with its description.

        Args:
            num_samples: Number of rows. Each row is given out once per epoch, and not drawn again.
            batch_size: Another name of `num_samples`.

        Returns:
            Rows [n, width] of one site, or [n, sites, width], in the feed's dtype, on the CPU; and their metadata.

        Raises:
            FeedNotReady, FeedEnded, FeedError, RequestRefused, UpstreamError, SettingsError: As `FeedClient.take`.
        """
        batch = self.feed.take(_number(num_samples, batch_size))
        values = batch.values
        return values, {
            "shape": tuple(values.shape),
            "dtype": str(values.dtype),
            "device": str(values.device),
            "num_samples": len(values),
            "sites": batch.sites,
            "position": batch.position,
        }

    def get_activations(self, num_samples: int = 10, *, batch_size: int | None = None) -> ActivationsJson:
        """Return the next rows as lists, with their description. Errors are those of `get_activations_tensor`."""
        values, metadata = self.get_activations_tensor(num_samples, batch_size=batch_size)
        return {
            "activations": values.float().tolist(),
            "shape": list(metadata["shape"]),
            "dtype": metadata["dtype"],
            "num_samples": metadata["num_samples"],
        }

    def get_stats(self) -> FeedStats:
        """Return runtime statistics; `valid_samples` is the number of rows that are ready.

        Raises:
            UpstreamError: The feed cannot be reached.
            SettingsError: The feed refuses the token.
        """
        return self.feed.get_stats()

    get_server_stats = get_stats

    def health_check(self) -> FeedAbout:
        """Return the feed's state (`status`) and description. Errors are those of `get_stats`."""
        return self.feed.about()

    def refresh_buffer(self) -> int:
        """Drop the rows that are ready; new ones follow. Return their number. Errors are those of `get_stats`."""
        return self.feed.refresh()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.feed.close()

    def __enter__(self) -> ActivationClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(num_samples: int, batch_size: int | None) -> int:
    if batch_size is not None and batch_size < 1:
        raise SettingsError(f"batch_size {batch_size}: expected at least 1")
    return num_samples if batch_size is None else batch_size
