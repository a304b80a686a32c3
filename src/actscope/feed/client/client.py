"""Taking rows from a feed: over HTTP, or straight out of its memory on the same machine, which the client finds out by itself.

client = FeedClient("http://127.0.0.1:6970", token)
client.wait_for_data()
for batch in client.iter(4096, device="cuda", prefetch=4):
    loss = sae(batch)
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from actscope.errors import (
    ActscopeError,
    FeedEnded,
    FeedError,
    FeedNotReady,
    MissingExtra,
    SettingsError,
    UpstreamError,
)
from actscope.extraction.contract import ROW_LABEL
from actscope.feed.client.http_transport import HttpTransport
from actscope.feed.client.prefetch import prefetch_iterator
from actscope.feed.client.shm_transport import DTYPES, ShmTransport
from actscope.runtime.boot import boot_id
from actscope.sites import select_from

log = logging.getLogger("actscope.feed")

Transport = Literal["auto", "near", "http"]
_SLICE_S = 20.0  # of one wait that the feed is asked for; longer ones are asked for again
_WANTED_S = 1.0  # ... on a thread that somebody may wait for
_POLL_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows: values [n, width], or [n, sites, width] of several sites.

    `position` is where its first row stands in the feed's order, `next` where the row after its last one does: a feed that is
    started with `--resume` and that position goes on with exactly that row. `missed` rows before it were never had. `labels`,
    where asked for, is ROW_LABEL [n].
    """

    values: Tensor
    sites: tuple[str, ...]
    position: str
    next: str
    missed: int = 0
    labels: np.ndarray | None = None


class FeedClient:
    """One consumer of a feed. Not for several threads at once; use as a context manager, or close it.

    token: what the feed printed when it started, else $ACTSCOPE_TOKEN. group: within a group each row goes to one consumer,
    and every group gets all rows. transport: "auto" takes the feed's own memory where it is on this machine and of this user.
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
        if transport not in ("auto", "near", "http"):
            raise SettingsError(f"transport {transport!r}: expected auto, near or http")
        self.group, self.timeout = group, timeout
        self._token = token if token is not None else os.environ.get("ACTSCOPE_TOKEN", "")
        self._transport = transport
        self._far = HttpTransport(url, self._token, timeout=_SLICE_S + 60)
        self._rows = HttpTransport(
            url, self._token, timeout=_SLICE_S + 60
        )  # a connection of their own: they may come on a thread
        self._near: ShmTransport | None = None
        self._closed = False
        self._about: dict[str, Any] | None = None
        self._sites: tuple[str, ...] = ()
        self.position = ""
        """Where the row after the last one taken stands."""

    # --- what there is ---

    def wait_for_data(self, num_samples: int = 1, timeout: float | None = None) -> dict[str, Any]:
        """Wait until so many rows are ready; the feed need not be up yet. Its stats.

        Raises FeedError when the feed has failed or ended, UpstreamError when it does not come in time.
        """
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            try:
                stats = self.get_stats()
                mine = stats["groups"].get(self.group, {}).get("ready_rows", stats["ready_rows"])
                if mine >= num_samples:
                    return stats
                if stats["state"] in ("failed", "ended"):
                    raise FeedError(
                        f"the feed has {stats['state']}: {stats['failure'] or 'all epochs have been served'}"
                    )
                problem: ActscopeError = UpstreamError(f"{mine} rows are ready ({stats['generator']['phase']})")
            except (UpstreamError, FeedNotReady) as error:
                problem = error
            if time.monotonic() > until:
                raise UpstreamError(f"{num_samples} rows were not there in time: {problem}") from problem
            time.sleep(_POLL_S)  # the feed may not be up yet: there is nothing to wait on

    def get_stats(self) -> dict[str, Any]:
        """How the feed does: `GET /stats`."""
        stats: dict[str, Any] = self._far.json("/stats")
        return stats

    def get_statistics(self) -> dict[str, dict[str, Any]]:
        """Of each site: rows, mean_norm, norm_scale, mean and std [width] over all rows so far."""
        sites: dict[str, dict[str, Any]] = self._far.json("/statistics")["sites"]
        return sites

    def about(self) -> dict[str, Any]:
        """Model, dataset, sites, width and dtype: `GET /`."""
        about: dict[str, Any] = self._far.json("/")
        return about

    def refresh(self) -> int:
        """Drop the rows that are ready, for all groups. How many those were."""
        return int(self._far.json("/refresh", method="POST")["dropped_rows"])

    # --- rows ---

    def get_activations_tensor(
        self, num_samples: int, *, sites: str = "", device: str | torch.device | None = None, out: Tensor | None = None
    ) -> Tensor:
        """The next rows: [n, width], or [n, sites, width] of several sites, in the feed's dtype. See `take`."""
        values = self.take(num_samples, sites=sites, out=out).values
        return values if device is None else values.to(device)

    def get_activations(self, num_samples: int, *, sites: str = "") -> list[Any]:
        """The next rows as lists of floats."""
        rows: list[Any] = self.take(num_samples, sites=sites).values.to(torch.float32).tolist()
        return rows

    def take(
        self,
        num_samples: int,
        *,
        sites: str = "",
        labels: bool = False,
        out: Tensor | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """The next `num_samples` rows of the group; waits for them, at most `timeout` seconds. Fewer at the end of the epochs.

        out: a contiguous CPU tensor of the feed's dtype with room for them, which is used instead of a new one. Raises
        FeedNotReady when they are not there in time, FeedEnded when there will be no more, UpstreamError when the feed has gone.
        """
        seconds = self.timeout if timeout is None else timeout
        batch = self._waited(lambda wait: self._take(num_samples, sites, labels, out, wait), seconds)
        self.position = batch.next
        return batch

    def _waited(self, ask: Callable[[float], T], seconds: float, over: threading.Event | None = None) -> T:
        """What `ask(wait)` gives, asked again until it is there, the time is over, or nobody wants it any more."""
        until = time.monotonic() + seconds
        at_once = _SLICE_S if over is None else _WANTED_S
        while True:
            left = until - time.monotonic()
            try:
                return ask(min(max(0.0, left), at_once))
            except FeedNotReady as error:
                left = until - time.monotonic()
                if left <= 0 or (over is not None and over.is_set()):
                    raise
                time.sleep(min(error.retry_after, _POLL_S, left))

    def iter(
        self,
        batch_size: int,
        *,
        sites: str = "",
        device: str | torch.device | None = None,
        prefetch: int = 2,
        normalize: bool | float = False,
        drop_last: bool = False,
        zero_copy: bool = False,
    ) -> Iterator[Tensor]:
        """Batches [batch_size, width], or [batch_size, sites, width], until the epochs end; a thread takes `prefetch` ahead.

        normalize: rows times the feed's `norm_scale` as it is at the start, so that their mean norm is sqrt(width); a number is
        that scale itself, for whoever goes on with a training, or needs to know it.
        zero_copy: batches of one site lie in the feed's own memory (same machine only): each is valid until the next one is
        asked for, and must not be written to. `self.position` is always that behind the batch last given.
        """
        if batch_size < 1:
            raise SettingsError(f"batch_size {batch_size}: expected at least 1")
        if zero_copy:
            if normalize or device is not None:
                raise SettingsError(
                    "zero_copy gives the feed's own memory as it is: scale and move the batches yourself"
                )
            yield from self._views(batch_size, sites, drop_last=drop_last)
            return
        scale: float | Tensor | None = None if isinstance(normalize, bool) else normalize
        for batch in prefetch_iterator(lambda over: self._batches(batch_size, sites, device, over), prefetch):
            if batch.missed:
                log.warning("%d rows before these were never had by group %s", batch.missed, self.group)
            if drop_last and len(batch.values) < batch_size:
                return
            if normalize and scale is None:
                scale = self._scale(batch)
            self.position = batch.next
            yield batch.values if scale is None else batch.values * scale

    def _batches(self, n: int, sites: str, device: str | torch.device | None, over: threading.Event) -> Iterator[Batch]:
        """Batches until the end. What was taken ahead and never given counts as delivered: resume by `position`."""
        while True:
            try:
                batch = self._waited(lambda wait: self._take(n, sites, False, None, wait), self.timeout, over)
            except FeedEnded:
                return
            except FeedNotReady:
                if over.is_set():
                    return
                raise
            if device is not None:
                moved = batch.values.to(device, non_blocking=False)
                batch = Batch(moved, batch.sites, batch.position, batch.next, batch.missed, batch.labels)
            yield batch

    def _views(self, n: int, sites: str, *, drop_last: bool) -> Iterator[Tensor]:
        near = self._opened()
        if near is None:
            raise SettingsError("zero_copy needs a feed of this user on this machine; this one is reached over HTTP")
        chosen = select_from(sites, self._sites)
        if len(chosen) != 1:
            raise SettingsError(f"zero_copy gives the rows of one site; sites={sites!r} names {len(chosen)}")
        while True:
            try:
                granted = self._waited(lambda wait: near.claim(n, wait), self.timeout)
            except FeedEnded:
                return
            if drop_last and sum(e.n for e in granted.extents) < n:
                return near.release(granted, delivered=False)
            self.position = granted.next
            try:
                yield near.views(granted, chosen[0])
                if not near.whole(granted):
                    log.warning(
                        "these rows were taken back while they were used: this consumer was silent for too long"
                    )
            finally:
                near.release(granted)

    # --- parts ---

    def _take(self, n: int, sites: str, labels: bool, out: Tensor | None, wait: float) -> Batch:
        near = self._opened()
        if near is not None:
            return self._take_near(near, n, sites, labels, out, wait)
        return self._take_far(n, sites, labels, out, wait)

    def _opened(self) -> ShmTransport | None:
        """The feed's memory, if it can be had; looked for once."""
        if self._closed:
            raise UpstreamError("this client has been closed: make another")
        if self._near is not None and self._near.closed:
            self._near = None
        if self._near is not None or self._transport == "http":
            return self._near
        try:
            place = self._rows.json("/near")
            if place["boot_id"] != boot_id() or not os.path.exists(place["socket"]):
                raise UpstreamError("the feed runs on another machine, or in another container")
            self._near = ShmTransport(place["socket"], self._token, self.group)
            self._sites = tuple(self._near.welcome.sites)
        except FeedNotReady:
            raise
        except (ActscopeError, OSError) as error:
            if self._transport == "near":
                raise
            log.warning("rows come over HTTP: %s", error)
            self._transport = "http"
        return self._near

    def _take_near(
        self, near: ShmTransport, n: int, sites: str, labels: bool, out: Tensor | None, wait: float
    ) -> Batch:
        chosen = select_from(sites, self._sites)
        _check_room(out, _shape(n, len(chosen), near.layout.width), near.dtype)
        while True:
            granted = near.claim(n, wait)
            rows = sum(extent.n for extent in granted.extents)
            whole = False
            try:
                values = _room(out, _shape(rows, len(chosen), near.layout.width), near.dtype)
                near.read(granted, chosen, values)
                found = near.labels(granted) if labels else None
                whole = near.whole(granted)
            finally:
                near.release(granted, delivered=whole)
            if whole:
                names = tuple(self._sites[i] for i in chosen)
                return Batch(values, names, granted.position, granted.next, granted.missed, found)
            log.warning("%d rows were taken back while they were read: this consumer was silent for too long", rows)

    def _take_far(self, n: int, sites: str, labels: bool, out: Tensor | None, wait: float) -> Batch:
        if out is not None:
            self._check_far_room(out, n, sites)
        format = "safetensors" if labels else "raw"
        answer = self._rows.ask(
            "/activations/tensor", num_samples=n, sites=sites, group=self.group, wait=wait, format=format
        )
        head = {name: answer.headers[f"X-Actscope-{name}"] for name in ("Shape", "Dtype", "Sites", "Position", "Next")}
        shape = tuple(int(size) for size in head["Shape"].split(","))
        values = _room(out, shape, DTYPES[head["Dtype"]])
        found = None
        if labels:
            found = _of_safetensors(self._rows.read(answer), values)
        else:
            self._rows.read_into(answer, memoryview(values.view(torch.uint8).reshape(-1).numpy()))  # type: ignore[arg-type]
        missed = int(answer.headers["X-Actscope-Missed-Rows"])
        return Batch(values, tuple(head["Sites"].split(",")), head["Position"], head["Next"], missed, found)

    def _check_far_room(self, out: Tensor, n: int, sites: str) -> None:
        if self._about is None:
            about = self._rows.json("/")
            self._about = about if about["sites"] else None  # not known before the model is there
        if self._about is not None:
            shape = _shape(n, len(select_from(sites, self._about["sites"])), self._about["width"])
            _check_room(out, shape, DTYPES[self._about["dtype"]])

    def _scale(self, batch: Batch) -> float | Tensor:
        stats = self.get_stats()["sites"]
        scales = [stats[name]["norm_scale"] for name in batch.sites]
        if len(scales) == 1:
            return float(scales[0])
        return torch.tensor(scales, dtype=batch.values.dtype, device=batch.values.device)[:, None]

    def close(self) -> None:
        """Leave the feed."""
        self._closed = True
        near, self._near = self._near, None
        if near is not None:
            near.close()
        self._rows.close()
        self._far.close()

    def __enter__(self) -> FeedClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shape(n: int, n_sites: int, width: int) -> tuple[int, ...]:
    return (n, width) if n_sites == 1 else (n, n_sites, width)


def _check_room(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Before anything is taken: SettingsError unless the rows will fit into `out`."""
    if out is None:
        return
    fits = out.dtype == dtype and tuple(out.shape[1:]) == tuple(shape[1:]) and len(out) >= shape[0]
    if not fits or not out.is_contiguous() or out.device.type != "cpu":
        raise SettingsError(
            f"out: expected a contiguous CPU tensor {dtype} of at least {tuple(shape)}, "
            f"found {out.dtype} {tuple(out.shape)} on {out.device}"
        )


def _room(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Where rows go: the first rows of `out`, or a new tensor."""
    return torch.empty(tuple(shape), dtype=dtype) if out is None else out[: shape[0]]


def _of_safetensors(file: bytes, out: Tensor) -> np.ndarray:
    """Labels of a safetensors answer; its rows go to `out`."""
    try:
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", "safetensors") from error
    tensors = load(file)
    out.copy_(tensors["activations"])
    labels = np.empty(len(out), ROW_LABEL)
    for name in ROW_LABEL.names or ():
        labels[name] = tensors[name].numpy()
    return labels
