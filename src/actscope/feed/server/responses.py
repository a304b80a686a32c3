"""HTTP responses with rows. They are sent from shared memory without a copy where possible, and are held until sent."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actscope.errors import FeedError, RequestRefused
from actscope.feed.answers import BufferFacts
from actscope.feed.buffer.allocator import Grant, RowRange
from actscope.feed.buffer.gather import indices_of, labels_of, values_of
from actscope.feed.server.broker import Broker
from actscope.feed.server.service import Service

log = logging.getLogger("actscope.feed")

#: Bytes of one chunk.
CHUNK = 1 << 20
#: Bytes at the end that are sent as copies: when the server has taken them, no view of the memory is left in its buffers.
_TAIL = 256 << 10
_LEAST_RATE = 1 << 20  # bytes per second that a client must take
_LABELS = ("text", "piece", "position", "token_id")


class GrantedRows:
    """Rows of a grant at some sites. `shape` is [n, width], or [n, sites, width] of several sites."""

    def __init__(self, broker: Broker, grant: Grant, sites: Sequence[int]) -> None:
        assert broker.memory is not None and broker.facts is not None
        self._memory, self._seed = broker.memory, broker.settings.seed
        self.grant, self.sites = grant, sites
        layout = self._memory.layout
        self.dtype = layout.dtype
        self.shape = (grant.n_rows, layout.width) if len(sites) == 1 else (grant.n_rows, len(sites), layout.width)
        self._names = [broker.facts.sites[i] for i in sites]
        self._model = f"{broker.facts.model}@{broker.facts.revision}"

    def parts(self) -> list[np.ndarray]:
        """Return the rows of each row range: [n, width] or [n, sites, width]. Views of the memory unless `is_copied`."""
        return [self._part(extent) for extent in self.grant.extents]

    @property
    def is_copied(self) -> bool:
        """Whether `parts` must copy: several sites, or a later turn, whose rows are not contiguous."""
        return len(self.sites) > 1 or any(extent.turn for extent in self.grant.extents)

    async def gathered(self) -> list[np.ndarray]:
        """Return `parts`. Copies are made on a thread."""
        return await asyncio.to_thread(self.parts) if self.is_copied else self.parts()

    def _part(self, extent: RowRange) -> np.ndarray:
        planes = [values_of(self._memory, extent, site, self._seed) for site in self.sites]
        return planes[0] if len(planes) == 1 else np.stack(planes, axis=1)

    def labels(self) -> dict[str, np.ndarray]:
        """Return the labels of the rows: text, piece, position and token_id, each int64 [n]."""
        labels = labels_of(self._memory, self.grant.extents, self._seed)
        return {name: labels[name].astype(np.int64) for name in _LABELS}

    def headers(self) -> dict[str, str]:
        """Return the headers that describe the bytes and their position in the feed."""
        return {
            "X-Actscope-Shape": ",".join(map(str, self.shape)),
            "X-Actscope-Dtype": self.dtype,
            "X-Actscope-Sites": ",".join(self._names),
            "X-Actscope-Position": str(self.grant.position),
            "X-Actscope-Next": str(self.grant.next),
            "X-Actscope-Missed-Rows": str(self.grant.missed),
            "X-Actscope-Model": self._model.encode("ascii", "backslashreplace").decode(),
            "X-Tensor-Shape": ",".join(map(str, self.shape)),
            "X-Tensor-Dtype": f"torch.{self.dtype}",
        }

    def indices(self) -> np.ndarray:
        """Return the place of each row in the buffer, int64 [n]: its window times the rows of a window, plus its row there."""
        parts = [_places(extent, self._memory.layout.window_rows, self._seed) for extent in self.grant.extents]
        return np.concatenate(parts)

    def as_json(self, buffer_stats: BufferFacts, *, labels: bool) -> bytes:
        """Return rows, metadata and, if requested, labels as one JSON object. Non-finite values are null."""
        rows = np.concatenate([_as_floats(part, self.dtype) for part in self.parts()])
        found: dict[str, object] = {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "sites": self._names,
            "position": str(self.grant.position),
            "next": str(self.grant.next),
            "missed_rows": self.grant.missed,
            "num_samples": self.grant.n_rows,
            "indices": self.indices().tolist(),
            "buffer_stats": buffer_stats,
            "activations": rows.tolist() if np.isfinite(rows).all() else _with_nulls(rows),
        }
        if labels:
            found["labels"] = {name: values.tolist() for name, values in self.labels().items()}
        return json.dumps(found, separators=(",", ":"), allow_nan=False).encode()

    def as_safetensors(self) -> bytes:
        """Return a safetensors file with the tensor `activations`, the labels of its rows, and the headers as metadata."""
        import torch  # imported here only: numpy has no bfloat16, and the server does not load torch otherwise
        from safetensors.torch import save

        rows = torch.from_numpy(np.concatenate(self.parts())).view(getattr(torch, self.dtype))
        labels = {name: torch.from_numpy(values) for name, values in self.labels().items()}
        ours = "X-Actscope-"
        about = {n.removeprefix(ours).lower(): value for n, value in self.headers().items() if n.startswith(ours)}
        return save({"activations": rows, **labels}, about)


class RowsResponse(Response):
    """Response that sends the rows of a batch from memory, and releases its grant once they are sent or cannot be."""

    media_type = "application/octet-stream"

    def __init__(
        self, batch: GrantedRows, parts: list[np.ndarray], release: Callable[[bool], None], *, patience_s: float
    ) -> None:
        self._parts = parts
        self._release, self._patience_s = release, patience_s
        self.status_code = 200
        self.background = None
        self.body = b""
        size = sum(part.nbytes for part in self._parts)
        self.init_headers({**batch.headers(), "Content-Length": str(size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the rows. The grant counts as delivered only if all were sent and the client is still connected."""
        sent = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send_rows(self._parts, send, self._patience_s)
            sent = not await _has_gone(receive)
        except TimeoutError:
            return log.warning("a client did not read its rows for %g s: its connection is closed", self._patience_s)
        finally:
            self._parts = []
            self._release(sent)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class HeldResponse(Response):
    """Response with bytes made from a batch. Its grant is released once they are sent or cannot be."""

    def __init__(
        self,
        content: bytes,
        release: Callable[[bool], None],
        *,
        patience_s: float,
        media_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._release, self._patience_s = release, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the bytes. The grant counts as delivered only if all were sent and the client is still connected."""
        sent = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.timeout(self._patience_s + len(self.body) / _LEAST_RATE):
                await send({"type": "http.response.body", "body": self.body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": True})  # waits for the previous one
            sent = not await _has_gone(receive)
        except TimeoutError:
            return log.warning("a client did not read its rows: its connection is closed")
        finally:
            self._release(sent)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_rows(rows: Sequence[np.ndarray], send: Send, patience_s: float) -> None:
    """Send the bytes of some rows.

    Raises:
        TimeoutError: The client took no chunk for `patience_s` seconds, or less than 1 MiB per second beyond them. A slow client
            must not hold rows forever.
    """
    size = sum(part.nbytes for part in rows)
    async with asyncio.timeout(patience_s + size / _LEAST_RATE):
        for data in chunks_of(rows):
            async with asyncio.timeout(patience_s):
                await send({"type": "http.response.body", "body": data, "more_body": True})


async def _has_gone(receive: Receive) -> bool:
    """Return whether the client has closed its connection, so that the bytes sent since then are lost."""
    news = asyncio.ensure_future(disconnected(receive))
    for _ in range(3):  # the request itself may come first
        await asyncio.sleep(0)
    news.cancel()
    return news.done() and not news.cancelled()


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        continue


def _places(extent: RowRange, window_rows: int, seed: int) -> np.ndarray:
    indices = indices_of(extent, seed)
    rows = np.arange(indices.start, indices.stop) if isinstance(indices, slice) else indices
    return rows + extent.window * window_rows


def _bytes_of(rows: np.ndarray) -> memoryview:
    whole: Any = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    return memoryview(whole)


def chunks_of(rows: Sequence[np.ndarray]) -> list[memoryview | bytes]:
    """Return the bytes of some rows as chunks: views of the memory, then copies of the last 256 KiB, then an empty chunk.

    The server takes a chunk only when most of the previous one has been sent. Once it has taken the empty chunk, no view of the
    memory is left in its buffers, and the rows can be released.
    """
    parts = [_bytes_of(part) for part in rows]
    chunks: list[memoryview | bytes] = []
    left = sum(len(part) for part in parts)
    for part in parts:
        for start in range(0, len(part), CHUNK):
            piece = part[start : start + CHUNK]
            views = max(0, min(len(piece), left - _TAIL))
            if views:
                chunks.append(piece[:views])
            if views < len(piece):
                chunks.append(bytes(piece[views:]))
            left -= len(piece)
    return [*chunks, b""]


def _as_floats(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return the rows as float32. bfloat16, held as uint16, is the upper half of a float32."""
    if dtype == "bfloat16":
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32)


def _with_nulls(rows: np.ndarray) -> object:
    """Return the rows as nested lists, with None for non-finite values."""
    found = rows.astype(object)
    found[~np.isfinite(rows)] = None
    return found.tolist()


class StreamResponse(Response):
    """Response that streams `batches` batches of `batch_size` rows. `first` is already granted. Holds one batch at a time."""

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
        self.init_headers(GrantedRows(feed.broker, first, sites).headers())
        del self.headers["content-length"]  # the length is not known in advance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the batches one by one. The batch in progress counts as abandoned if the client disconnects."""
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_batches(send, gone)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("a client did not read its stream: its connection is closed")
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
            batch = GrantedRows(self._feed.broker, self._grant, self._sites)
            await send_rows(await batch.gathered(), send, self._feed.settings.lease_seconds)
            self._release(delivered=not gone.done())
            if short or gone.done() or self._feed.stopping:
                return

    async def _next(self, gone: asyncio.Future[None]) -> bool:
        """Wait for the next batch. Return False if the client disconnects first, or no batch is granted."""
        taking = asyncio.ensure_future(
            self._feed.broker.take(self._group, self._batch_size, self._owner, wait=self._wait)
        )
        waiting: set[asyncio.Future[Any]] = {taking, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            return False
        try:
            self._grant = taking.result()
        except (FeedError, RequestRefused):  # its group was forgotten meanwhile, and others have taken its place
            return False
        return True

    def _release(self, *, delivered: bool) -> None:
        grant, self._grant = self._grant, None
        if grant is not None:
            self._feed.broker.release(grant.id, self._owner, delivered=delivered)
