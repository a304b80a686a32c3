"""Transport of ready rows to a consumer. One round measures every method once, each as a consumer group of its own."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit

import httpx
import numpy as np
import torch
from torch import Tensor

from actscope.bench.support.feed_loader import Loaders
from actscope.bench.support.feed_servers import WIDTH, Feed
from actscope.bench.support.samples import Samples
from actscope.feed.client.client import FeedClient
from actscope.feed.client.options import Transport

WINDOWS, SERVES = 2, 2
SMALL, SMALL_TAKES = 16, 100
_ROW_BYTES = WIDTH * 2


@dataclass(frozen=True, slots=True)
class TransportSizes:
    """Numbers of rows in a window (one response over HTTP) and in a batch (one take from shared memory)."""

    window_rows: int = 16384
    batch: int = 4096

    @property
    def answer_bytes(self) -> int:
        return self.window_rows * _ROW_BYTES

    @property
    def rows(self) -> int:
        """Number of rows in the buffer."""
        return WINDOWS * self.window_rows

    @property
    def settings(self) -> dict[str, str | float]:
        """Settings of a feed that serves each row twice to every group, and never expires a group."""
        return {
            "sites": "0", "dtype": "bfloat16", "buffer_rows": self.rows, "windows": WINDOWS, "serves": SERVES,
            "max_groups": 100_000, "group_seconds": 1e6, "texts": 4000,
        }  # fmt: skip


def keep(running: Feed, sizes: TransportSizes) -> None:
    """Wait until all windows are full, and prevent their refill by a group that takes one row and no more."""
    with FeedClient(running.url, running.token, group="keeper", transport="http") as keeper:
        keeper.take(1)
        keeper.wait_for_data(sizes.rows * SERVES - 1)


def all_rows(running: Feed, sizes: TransportSizes) -> Tensor:
    """Return every row once, [sizes.rows, WIDTH]."""
    with FeedClient(running.url, running.token, group="all") as client:
        turns = [client.take(sizes.window_rows).values for _ in range(WINDOWS * SERVES)]
    return torch.cat(turns[::SERVES])


class Rounds:
    """Measures all methods in rounds, each of which begins with another method.

    Speeds are in GB/s, separately for takes in memory order and for gathered ones. Latencies are in ms.
    """

    def __init__(self, running: Feed, plain: str, loaders: Loaders, sizes: TransportSizes) -> None:
        self.samples = Samples()
        self.done = 0
        self._feed, self._plain, self._loaders, self._sizes = running, plain, loaders, sizes
        self._groups = (f"round-{n}" for n in count())
        self._answer = torch.zeros(sizes.window_rows, WIDTH, dtype=torch.bfloat16)
        self._batch = torch.zeros(sizes.batch, WIDTH, dtype=torch.bfloat16)
        self._source = self._answer.repeat(WINDOWS, 1)
        self._ways = [
            self._bare, self._http, self._client, self._client_new, self._httpx, self._shm, self._near_first, self._views,
            self._memcpy, self._loader, self._small,
        ]  # fmt: skip

    def one(self) -> None:
        """Run one round."""
        by = self.done % len(self._ways)
        for way in self._ways[by:] + self._ways[:by]:
            way()
        self.done += 1

    # --- over HTTP ---

    def _bare(self) -> None:
        with closing(_connection(self._plain)) as connection:
            _get(connection, "/", {}, self._bytes)
            spent = [_seconds(lambda: _get(connection, "/", {}, self._bytes)) for _ in range(WINDOWS)]
        self.samples.add("bare", _gbps(spent, self._sizes.window_rows))

    def _http(self) -> None:
        path = f"/activations/tensor?num_samples={self._sizes.window_rows}&group={next(self._groups)}"
        with closing(_connection(self._feed.url)) as connection:
            _get(connection, "/near", self._headers, None)
            self._all("http", lambda: _get(connection, path, self._headers, self._bytes), self._sizes.window_rows)

    def _client(self) -> None:
        with self._consumer("http") as client:
            self._all("client", lambda: client.take(self._sizes.window_rows, out=self._answer), self._sizes.window_rows)

    def _client_new(self) -> None:
        with self._consumer("http") as client:
            self._all("client_new", lambda: client.take(self._sizes.window_rows), self._sizes.window_rows)

    def _httpx(self) -> None:
        params: dict[str, str | int] = {"num_samples": self._sizes.window_rows, "group": next(self._groups)}
        with httpx.Client(base_url=self._feed.url, headers=self._headers) as client:
            client.get("/near")
            self._all(
                "httpx", lambda: client.get("/activations/tensor", params=params).content, self._sizes.window_rows
            )

    # --- from shared memory ---

    def _shm(self) -> None:
        with self._consumer("near") as client:
            _touch(client)
            self._all("near", lambda: client.take(self._sizes.batch, out=self._batch), self._sizes.batch)

    def _near_first(self) -> None:
        """Measure the same with page faults during the reads, as in a consumer's first pass over the buffer."""
        with self._consumer("near") as client:
            self._all("near_first", lambda: client.take(self._sizes.batch, out=self._batch), self._sizes.batch)

    def _views(self) -> None:
        with self._consumer("near") as client:
            _touch(client, views=True)
            batches = client.iter(self._sizes.batch, zero_copy=True)
            self._all("view", lambda: float(_one_a_page(next(batches)).sum()), self._sizes.batch)
            batches.close()  # type: ignore[attr-defined]  # of a generator; it releases the rows

    def _memcpy(self) -> None:
        starts = range(0, self._sizes.rows, self._sizes.batch)
        parts = [self._source[start : start + self._sizes.batch] for start in starts]
        spent = [_seconds(lambda part=part: self._batch.copy_(part)) for part in parts]  # type: ignore[misc]
        self.samples.add("memcpy", _gbps(spent, self._sizes.batch))

    def _loader(self) -> None:
        for name, seconds in self._loaders.epoch().items():
            self.samples.add(name, _gbps([seconds], self._sizes.rows))

    def _small(self) -> None:
        for way in ("near", "http"):
            with self._consumer(way) as client:
                spent = [_seconds(lambda: client.take(SMALL)) * 1e3 for _ in range(SMALL_TAKES)]
            for percent in (50, 99):
                self.samples.add(f"{way}_take_p{percent}_ms", float(np.percentile(spent, percent)))

    # --- parts ---

    @property
    def _bytes(self) -> memoryview:
        return memoryview(self._answer.view(torch.uint8).reshape(-1).numpy())  # type: ignore[arg-type]

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._feed.token}"}

    def _consumer(self, transport: Transport) -> FeedClient:
        """Create a client of a new group, with its connections open."""
        client = FeedClient(self._feed.url, self._feed.token, group=next(self._groups), transport=transport)
        client.get_stats()
        client._opened()
        return client

    def _all(self, name: str, take: Callable[[], object], n: int) -> None:
        """Take all rows of the group, `n` at a time, and record the speeds."""
        each = self._sizes.window_rows // n
        spent = np.array([_seconds(take) for _ in range(self._sizes.rows * SERVES // n)]).reshape(WINDOWS, SERVES, each)
        for turn, called in enumerate(("", "_gathered")):
            self.samples.add(name + called, _gbps(spent[:, turn].ravel().tolist(), n))


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port)


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str], out: memoryview | None) -> None:
    """Read the complete body into `out`, which must have its length, or discard it if `out` is None."""
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    if out is None:
        answer.read()
        return
    have = 0
    while have < len(out) and (n := answer.readinto(out[have:])):
        have += n
    assert have == len(out) and answer.status == 200 and not answer.read()


def _touch(client: FeedClient, *, views: bool = False) -> None:
    """Fault in every page of the shared memory, as after a consumer's first pass over the buffer."""
    near = client._opened()
    assert near is not None
    if views and (private := near.rows.private_views()) is not None:
        private.touch()
    for window in near.rows.planes:
        for plane in window:
            _one_a_page(plane).sum()


def _one_a_page(rows: Tensor) -> Tensor:
    """Return one value per page of rows of `WIDTH`, each of which is a page long."""
    return rows[:, 0]


def _seconds(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def _gbps(spent: Sequence[float], n: int) -> float:
    """Return the overall speed of takes of `n` rows each, in GB/s."""
    return len(spent) * n * _ROW_BYTES / sum(spent) / 1e9
