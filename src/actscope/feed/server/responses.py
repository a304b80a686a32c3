"""Rows as HTTP answers. What can be sent from the memory itself is not copied; the rows are held until they have gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actscope.errors import FeedError
from actscope.feed.buffer.allocator import Grant, RowRange
from actscope.feed.buffer.gather import labels_of, values_of
from actscope.feed.server.broker import Broker
from actscope.feed.server.service import Service

log = logging.getLogger("actscope.feed")

#: Sent at once. Behind the last view come so many bytes that are copies: when they have been taken, no view is left in a buffer.
CHUNK = 1 << 20
_TAIL = 256 << 10
_LEAST_RATE = 1 << 20  # bytes per second that a client must take
_LABELS = ("text", "piece", "position", "token_id")


class GrantedRows:
    """The rows of a grant at some sites."""

    def __init__(self, desk: Broker, grant: Grant, sites: Sequence[int]) -> None:
        assert desk.memory is not None and desk.facts is not None
        self._memory, self._seed = desk.memory, desk.settings.seed
        self.grant, self.sites = grant, sites
        layout = self._memory.layout
        self.dtype = layout.dtype
        self.shape = (grant.n_rows, layout.width) if len(sites) == 1 else (grant.n_rows, len(sites), layout.width)
        self._names = [desk.facts.sites[i] for i in sites]
        self._model = f"{desk.facts.model}@{desk.facts.revision}"

    def parts(self) -> list[np.ndarray]:
        """The rows, stretch by stretch: [n, width], or [n, sites, width]. Views of the memory where they can be."""
        return [self._part(extent) for extent in self.grant.extents]

    @property
    def is_copied(self) -> bool:
        """Whether `parts` must copy, which takes its time."""
        return len(self.sites) > 1 or any(extent.turn for extent in self.grant.extents)

    async def gathered(self) -> list[np.ndarray]:
        """The parts; made on a thread where they are copies."""
        return await asyncio.to_thread(self.parts) if self.is_copied else self.parts()

    def _part(self, extent: RowRange) -> np.ndarray:
        planes = [values_of(self._memory, extent, site, self._seed) for site in self.sites]
        return planes[0] if len(planes) == 1 else np.stack(planes, axis=1)

    def labels(self) -> dict[str, np.ndarray]:
        """Of each row: text, piece, position, token_id, as int64 [n]."""
        labels = labels_of(self._memory, self.grant.extents, self._seed)
        return {name: labels[name].astype(np.int64) for name in _LABELS}

    def headers(self) -> dict[str, str]:
        """What a client needs to know of the bytes, and where they stand in the feed."""
        return {
            "X-Actscope-Shape": ",".join(map(str, self.shape)),
            "X-Actscope-Dtype": self.dtype,
            "X-Actscope-Sites": ",".join(self._names),
            "X-Actscope-Position": str(self.grant.position),
            "X-Actscope-Next": str(self.grant.next),
            "X-Actscope-Missed-Rows": str(self.grant.missed),
            "X-Actscope-Model": self._model.encode("ascii", "backslashreplace").decode(),
        }

    def as_json(self, *, labels: bool) -> bytes:
        """Everything as one JSON object. Values that are not finite are null."""
        rows = np.concatenate([_as_floats(part, self.dtype) for part in self.parts()])
        found: dict[str, object] = {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "sites": self._names,
            "position": str(self.grant.position),
            "next": str(self.grant.next),
            "missed_rows": self.grant.missed,
            "activations": rows.tolist() if np.isfinite(rows).all() else _with_nulls(rows),
        }
        if labels:
            found["labels"] = {name: values.tolist() for name, values in self.labels().items()}
        return json.dumps(found, separators=(",", ":"), allow_nan=False).encode()

    def as_safetensors(self) -> bytes:
        """One safetensors file: `activations`, and the labels of its rows."""
        import torch  # only here: numpy has no bfloat16, and the server is light without it
        from safetensors.torch import save

        rows = torch.from_numpy(np.concatenate(self.parts())).view(getattr(torch, self.dtype))
        labels = {name: torch.from_numpy(values) for name, values in self.labels().items()}
        about = {name.removeprefix("X-Actscope-").lower(): value for name, value in self.headers().items()}
        return save({"activations": rows, **labels}, about)


class RowsResponse(Response):
    """Sends the rows of a batch out of the memory, and releases its grant when they have gone, or cannot go."""

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
        sent = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send_rows(self._parts, send, self._patience_s)
            sent = not await _has_gone(receive)
        except TimeoutError:
            return log.warning("a client did not read its rows for %g s: its connection is ended", self._patience_s)
        finally:
            self._parts = []
            self._release(sent)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class HeldResponse(Response):
    """Bytes that were made of a batch; its grant is released when they have gone, or cannot go."""

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
        sent = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.timeout(self._patience_s + len(self.body) / _LEAST_RATE):
                await send({"type": "http.response.body", "body": self.body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": True})  # waits for the one before
            sent = not await _has_gone(receive)
        except TimeoutError:
            return log.warning("a client did not read its rows: its connection is ended")
        finally:
            self._release(sent)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_rows(rows: Sequence[np.ndarray], send: Send, patience_s: float) -> None:
    """Send the bytes of some rows. Raises TimeoutError for a client that reads too slowly: it must not hold rows for ever."""
    size = sum(part.nbytes for part in rows)
    async with asyncio.timeout(patience_s + size / _LEAST_RATE):
        for data in chunks_of(rows):
            async with asyncio.timeout(patience_s):
                await send({"type": "http.response.body", "body": data, "more_body": True})


async def _has_gone(receive: Receive) -> bool:
    """Whether the client has closed its connection: what was sent since then went nowhere."""
    news = asyncio.ensure_future(disconnected(receive))
    for _ in range(3):  # the request itself may come first
        await asyncio.sleep(0)
    news.cancel()
    return news.done() and not news.cancelled()


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        continue


def _bytes_of(rows: np.ndarray) -> memoryview:
    whole: Any = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    return memoryview(whole)


def chunks_of(rows: Sequence[np.ndarray]) -> list[memoryview | bytes]:
    """The bytes of some rows: views of the memory, then a tail that is copied, then nothing.

    A server waits before it takes a chunk until most of the one before is gone. So when it has taken the last one, the empty one,
    no view of the memory is left in its buffers, and the rows can be given up.
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
    """float32; bfloat16, whose bits numpy holds as uint16, is the upper half of one."""
    if dtype == "bfloat16":
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32)


def _with_nulls(rows: np.ndarray) -> object:
    found = rows.astype(object)
    found[~np.isfinite(rows)] = None
    return found.tolist()


class StreamResponse(Response):
    """Sends `batches` batches of `batch_size` rows; the first one is granted already. Holds one batch at a time."""

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
        self.init_headers(GrantedRows(feed.desk, first, sites).headers())
        del self.headers["content-length"]  # how long it will be is not known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_batches(send, gone)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("a client did not read its stream: its connection is ended")
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
            batch = GrantedRows(self._feed.desk, self._grant, self._sites)
            await send_rows(await batch.gathered(), send, self._feed.settings.lease_seconds)
            self._release(delivered=not gone.done())
            if short or gone.done() or self._feed.stopping:
                return

    async def _next(self, gone: asyncio.Future[None]) -> bool:
        """Take the next batch, unless the client goes first."""
        taking = asyncio.ensure_future(
            self._feed.desk.take(self._group, self._batch_size, self._owner, wait=self._wait)
        )
        waiting: set[asyncio.Future[Any]] = {taking, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            return False
        try:
            self._grant = taking.result()
        except FeedError:
            return False
        return True

    def _release(self, *, delivered: bool) -> None:
        grant, self._grant = self._grant, None
        if grant is not None:
            self._feed.desk.release(grant.id, self._owner, delivered=delivered)
