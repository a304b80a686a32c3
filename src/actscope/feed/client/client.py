"""Synchronous feed client. It reads rows over HTTP, or from shared memory when the feed runs on the same machine.

client = FeedClient("http://127.0.0.1:6970", token)
client.wait_for_data()
for batch in client.iter(4096, device="cuda", prefetch=4):
    loss = sae(batch)
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

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
from actscope.feed.answers import FeedAbout, FeedStats, SiteVectors
from actscope.feed.client.http_transport import HttpTransport
from actscope.feed.client.options import Transport
from actscope.feed.client.prefetch import prefetch_iterator
from actscope.feed.client.shared_rows import DTYPES
from actscope.feed.client.shm_transport import ShmTransport
from actscope.near_miss import hinted_class
from actscope.runtime.boot import boot_id
from actscope.runtime.decoding import as_own_error
from actscope.runtime.memory import check_room
from actscope.sites import select_from

log = logging.getLogger("actscope.feed")

_SLICE_S = 20.0  # longest wait of one request; longer waits are split into several requests
_WANTED_S = 1.0  # the same on the prefetch thread, so that stopping it takes about a second
_POLL_S = 0.2
_HEADERS = ("Shape", "Dtype", "Sites", "Position", "Next", "Missed-Rows")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of one claim.

    Attributes:
        values: Rows [n, width] of one site, or [n, sites, width] of several, in the feed's dtype.
        sites: Site names, in the order of the `sites` axis.
        position: Position of the first row in the feed's order.
        next: Position of the row after the last one. A feed started with `--resume` and this position continues there.
        missed: Rows directly before these that the group never received.
        labels: ROW_LABEL [n] if labels were requested, else None.
    """

    values: Tensor
    sites: tuple[str, ...]
    position: str
    next: str
    missed: int = 0
    labels: np.ndarray | None = None


@hinted_class
class FeedClient:
    """One consumer of a feed. Not thread-safe. Use it as a context manager, or call `close`.

    Args:
        url: Base URL of the feed.
        token: Token that the feed printed at start; None reads $ACTSCOPE_TOKEN.
        group: Consumer group. Within a group each row goes to one consumer; every group gets all rows.
        transport: "near" uses shared memory, "http" uses HTTP. "auto" uses shared memory if the feed runs on this machine
            as this user, and HTTP otherwise.
        timeout: Default wait for rows, in seconds.

    Raises:
        SettingsError: `transport` is unknown, or `url` is not of the form http://host:port.
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
        self._http = HttpTransport(url, self._token, timeout=_SLICE_S + 60)
        self._rows = HttpTransport(
            url, self._token, timeout=_SLICE_S + 60
        )  # a separate connection, because rows may be read on the prefetch thread
        self._shm: ShmTransport | None = None
        self._closed = False
        self._about: FeedAbout | None = None
        self._sites: tuple[str, ...] = ()
        self.position = ""
        """Position of the row after the last one returned; empty before the first row."""

    # --- state of the feed ---

    def wait_for_data(self, num_samples: int = 1, timeout: float | None = None) -> FeedStats:
        """Wait until `num_samples` rows are ready. The feed may still be starting.

        Args:
            num_samples: Rows that must be ready for this client's group.
            timeout: Longest wait in seconds; None takes the client's `timeout`.

        Returns:
            The feed's statistics, as `get_stats`.

        Raises:
            FeedError: The feed has failed or ended.
            UpstreamError: The rows were not ready in time, or the feed cannot be reached.
            SettingsError: The feed refuses the token.
        """
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            try:
                stats = self.get_stats()
                own = stats["groups"].get(self.group)
                mine = stats["ready_rows"] if own is None else own["ready_rows"]
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
                raise UpstreamError(f"{num_samples} rows were not ready in time: {problem}") from problem
            time.sleep(_POLL_S)  # polled, because the feed may not be up yet

    def get_stats(self) -> FeedStats:
        """Return runtime statistics (`GET /stats`). The feed may still be loading its model, or have failed.

        Raises:
            UpstreamError: The feed cannot be reached.
            SettingsError: The feed refuses the token.
        """
        stats: FeedStats = self._http.json("/stats")
        return stats

    def get_statistics(self) -> dict[str, SiteVectors]:
        """Return the statistics of each site, over all rows so far (`GET /statistics`).

        Returns:
            By site: rows, mean_norm (L2), norm_scale, and the lists mean and std [width].

        Raises:
            FeedNotReady: The model is still being loaded.
            UpstreamError: The feed cannot be reached.
            SettingsError: The feed refuses the token.
        """
        sites: dict[str, SiteVectors] = self._http.json("/statistics")["sites"]
        return sites

    def about(self) -> FeedAbout:
        """Return the model, dataset, sites, width and dtype (`GET /`). `sites` is None while the model is being loaded.

        Raises:
            UpstreamError: The feed cannot be reached.
            SettingsError: The feed refuses the token.
        """
        about: FeedAbout = self._http.json("/")
        return about

    def refresh(self) -> int:
        """Drop the ready rows of all groups; new rows follow (`POST /refresh`).

        Returns:
            The number of rows dropped.

        Raises:
            UpstreamError: The feed cannot be reached.
            SettingsError: The feed refuses the token.
        """
        return int(self._http.json("/refresh", method="POST")["dropped_rows"])

    # --- rows ---

    def get_activations_tensor(
        self, num_samples: int, *, sites: str = "", device: str | torch.device | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Return the next rows as a tensor. Wait at most the client's `timeout`.

        Args:
            num_samples: Number of rows.
            sites: Site selection; empty takes all sites of the feed.
            device: Device to move the rows to; None leaves them on the CPU.
            out: Tensor to fill, as in `take`.

        Returns:
            Rows [n, width] of one site, or [n, sites, width] of several, in the feed's dtype. The last batch of the last
            epoch may be shorter.

        Raises:
            FeedNotReady, FeedEnded, FeedError, RequestRefused, SiteError, UpstreamError, SettingsError: As `take`.
        """
        values = self.take(num_samples, sites=sites, out=out).values
        return values if device is None else values.to(device)

    def get_activations(self, num_samples: int, *, sites: str = "") -> list[list[float]] | list[list[list[float]]]:
        """Return the next rows as nested lists of floats. Shape and errors are those of `get_activations_tensor`."""
        rows: list[list[float]] | list[list[list[float]]] = (
            self.take(num_samples, sites=sites).values.to(torch.float32).tolist()
        )
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
        """Return the next rows of the group, and advance `position`.

        Args:
            num_samples: Number of rows. The end of the last epoch may return fewer.
            sites: Site selection; empty takes all sites of the feed.
            labels: Whether to return row labels.
            out: Contiguous CPU tensor of the feed's dtype with at least `num_samples` rows. The result is a view of it.
            timeout: Longest wait in seconds; None takes the client's `timeout`.

        Returns:
            A batch on the CPU.

        Raises:
            FeedNotReady: The rows were not ready in time; over HTTP, also when there are too many requests.
            FeedEnded: All epochs have been served.
            FeedError: The feed has failed.
            RequestRefused: `num_samples` is not between 1 and the feed's `max_samples` (see `get_stats`), or there are too many
                groups; over HTTP, also for an invalid group name.
            SiteError: The feed does not have such a site.
            UpstreamError: The feed cannot be reached, or this client is closed.
            SettingsError: `out` has the wrong shape, dtype, layout or device, or the feed refuses the token.
            MissingExtra: `labels` over HTTP needs safetensors, which is not installed.
        """
        seconds = self.timeout if timeout is None else timeout
        batch = self._waited(lambda wait: self._take(num_samples, sites, labels, out, wait), seconds)
        self.position = batch.next
        return batch

    def _waited(self, ask: Callable[[float], T], seconds: float, over: threading.Event | None = None) -> T:
        """Call `ask(wait)` until it succeeds, `seconds` elapse or `over` is set. Both of these raise FeedNotReady."""
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
        """Yield batches until all epochs have been served. `self.position` follows the batch last yielded.

        Args:
            batch_size: Rows of a batch, at least 1.
            sites: Site selection; empty takes all sites of the feed.
            device: Device of the batches; None leaves them on the CPU.
            prefetch: Batches that a thread prefetches. `zero_copy` ignores it.
            normalize: True multiplies rows by the feed's `norm_scale`, read once at the first batch, so that their mean L2
                norm is sqrt(width). A float is used as the scale, for example to continue a training run.
            drop_last: Whether to drop a last batch of fewer than `batch_size` rows.
            zero_copy: Yield views of shared memory where a batch is contiguous (same machine, one site). A view is
                valid until the next batch is requested. What is written to it is copied, and seen by nobody else.

        Yields:
            Rows [batch_size, width] of one site, or [batch_size, sites, width] of several.

        Raises:
            SettingsError: `batch_size` is below 1, `zero_copy` cannot be used with the other arguments or this feed, or the
                feed refuses the token.
            FeedNotReady: A batch was not ready within the client's `timeout`.
            FeedError: The feed has failed.
            RequestRefused: `batch_size` is above the feed's `max_samples`, or another reason of `take`.
            SiteError: The feed does not have such a site, as in `take`.
            UpstreamError: The feed cannot be reached, or this client is closed.
        """
        if batch_size < 1:
            raise SettingsError(f"batch_size {batch_size}: expected at least 1")
        if zero_copy:
            if normalize or device is not None:
                raise SettingsError(
                    "zero_copy yields views of the feed's memory, on the CPU and not scaled: scale and move them yourself"
                )
            yield from self._views(batch_size, sites, drop_last=drop_last)
            return
        scale: float | Tensor | None = None if isinstance(normalize, bool) else normalize
        for batch in prefetch_iterator(lambda over: self._batches(batch_size, sites, device, over), prefetch):
            if batch.missed:
                log.warning("the %d rows before these were never received by group %s", batch.missed, self.group)
            if drop_last and len(batch.values) < batch_size:
                return
            if normalize and scale is None:
                scale = self._scale(batch)
            self.position = batch.next
            yield batch.values if scale is None else batch.values * scale

    def _batches(self, n: int, sites: str, device: str | torch.device | None, over: threading.Event) -> Iterator[Batch]:
        """Yield batches until the feed ends or `over` is set.

        Prefetched batches count as delivered even if they are not used, so resume from `position`.
        """
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
        shm = self._waited(lambda wait: self._opened(), self.timeout)
        if shm is None:
            raise SettingsError("zero_copy needs a feed of this user on this machine; this feed is read over HTTP")
        chosen = select_from(sites, self._sites)
        if len(chosen) != 1:
            raise SettingsError(f"zero_copy yields the rows of one site; sites={sites!r} names {len(chosen)}")
        while True:
            try:
                granted = self._waited(lambda wait: shm.claim(n, wait), self.timeout)
            except FeedEnded:
                return
            if drop_last and sum(e.n for e in granted.extents) < n:
                return shm.release(granted, delivered=False)
            self.position = granted.next
            try:
                with shm.rows.view(granted.extents, chosen[0]) as rows:
                    yield rows
                if not shm.rows.intact(granted.extents):
                    log.warning(
                        "rows were overwritten while in use: this consumer was silent for too long, and lost its lease"
                    )
            finally:
                shm.release(granted)

    # --- parts ---

    def _take(self, n: int, sites: str, labels: bool, out: Tensor | None, wait: float) -> Batch:
        shm = self._opened()
        if shm is not None:
            return self._take_shm(shm, n, sites, labels, out, wait)
        return self._take_http(n, sites, labels, out, wait)

    def _opened(self) -> ShmTransport | None:
        """Return the shared-memory transport, connecting if necessary; None if rows come over HTTP."""
        if self._closed:
            raise UpstreamError("this client is closed: create another one")
        if self._shm is not None and self._shm.closed:
            self._shm = None
        if self._shm is not None or self._transport == "http":
            return self._shm
        try:
            place = self._rows.json("/near")
            if place["boot_id"] != boot_id() or not os.path.exists(place["socket"]):
                raise UpstreamError("the feed runs on another machine, or in another container")
            self._shm = ShmTransport(place["socket"], self._token, self.group)
            self._sites = tuple(self._shm.welcome.sites)
        except FeedNotReady:
            raise
        except (ActscopeError, OSError) as error:
            if self._transport == "near":
                raise
            log.warning("rows are read over HTTP, not from shared memory: %s", error)
            self._transport = "http"
        return self._shm

    def _take_shm(self, shm: ShmTransport, n: int, sites: str, labels: bool, out: Tensor | None, wait: float) -> Batch:
        chosen = select_from(sites, self._sites)
        _check_room(out, _shape(n, len(chosen), shm.rows.layout.width), shm.rows.dtype)
        while True:
            granted = shm.claim(n, wait)
            rows = sum(extent.n for extent in granted.extents)
            whole = False
            try:
                values = _room(out, _shape(rows, len(chosen), shm.rows.layout.width), shm.rows.dtype)
                shm.rows.read(granted.extents, chosen, values)
                found = shm.rows.labels(granted.extents) if labels else None
                whole = shm.rows.intact(granted.extents)
            finally:
                shm.release(granted, delivered=whole)
            if whole:
                names = tuple(self._sites[i] for i in chosen)
                return Batch(values, names, granted.position, granted.next, granted.missed, found)
            log.warning("%d rows were overwritten while they were read: this consumer was silent for too long", rows)

    def _take_http(self, n: int, sites: str, labels: bool, out: Tensor | None, wait: float) -> Batch:
        if out is not None:
            self._check_http_room(out, n, sites)
        format = "safetensors" if labels else "raw"
        answer = self._rows.ask(
            "/activations/tensor", num_samples=n, sites=sites, group=self.group, wait=wait, format=format
        )
        head = {name: answer.headers.get(f"X-Actscope-{name}", "") for name in _HEADERS}
        shape, dtype = _announced(head, n, answer.length)
        values = _room(out, shape, dtype)
        found = None
        if labels:
            found = _of_safetensors(self._rows.read(answer), values)
        else:
            self._rows.read_into(answer, memoryview(values.view(torch.uint8).reshape(-1).numpy()))  # type: ignore[arg-type]
        names = tuple(head["Sites"].split(","))
        return Batch(values, names, head["Position"], head["Next"], int(head["Missed-Rows"]), found)

    def _check_http_room(self, out: Tensor, n: int, sites: str) -> None:
        if self._about is None:
            found: FeedAbout = self._rows.json("/")
            self._about = found if found["sites"] else None  # unknown until the model is loaded
        about = self._about
        if about is not None and about["sites"] and about["width"] and about["dtype"]:
            shape = _shape(n, len(select_from(sites, about["sites"])), about["width"])
            _check_room(out, shape, DTYPES[about["dtype"]])

    def _scale(self, batch: Batch) -> float | Tensor:
        stats = self.get_stats()["sites"]
        scales: list[float] = []
        for name in batch.sites:
            scale = stats[name]["norm_scale"]
            if scale is None:
                raise FeedError(
                    f"the feed has no norm_scale of {name}: its rows are all zero; give normalize as a number"
                )
            scales.append(scale)
        if len(scales) == 1:
            return scales[0]
        return torch.tensor(scales, dtype=batch.values.dtype, device=batch.values.device)[:, None]

    def close(self) -> None:
        """Close all connections. Rows still held are counted as abandoned. Idempotent."""
        self._closed = True
        shm, self._shm = self._shm, None
        if shm is not None:
            shm.close()
        self._rows.close()
        self._http.close()

    def __enter__(self) -> FeedClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shape(n: int, n_sites: int, width: int) -> tuple[int, ...]:
    return (n, width) if n_sites == 1 else (n, n_sites, width)


def _announced(head: dict[str, str], n: int, length: int | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and dtype of the rows that a response's headers announce. `length`: of its body, if it is known.

    Raises UpstreamError, before anything is allocated, unless they are at most `n` rows of a known dtype that the body can hold.
    """
    sizes = head["Shape"].split(",")
    plain = all(text.isascii() and text.isdecimal() and len(text) < 16 for text in (*sizes, head["Missed-Rows"]))
    if not plain or len(sizes) not in (2, 3) or head["Dtype"] not in DTYPES or int(sizes[0]) > n:
        raise UpstreamError(f"the feed's answer announces no rows that were asked for: {head}; is it a feed?")
    shape, dtype = tuple(map(int, sizes)), DTYPES[head["Dtype"]]
    n_bytes = math.prod(shape) * dtype.itemsize
    if length is not None and n_bytes > length:
        raise UpstreamError(f"the feed's answer announces {n_bytes} bytes of rows, and has {length}")
    check_room(n_bytes, UpstreamError, f"a batch of {shape}")
    return shape, dtype


def _check_room(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise SettingsError unless rows of `shape` and `dtype` fit into `out`. Called before rows are claimed."""
    if out is None:
        return
    fits = out.dtype == dtype and tuple(out.shape[1:]) == tuple(shape[1:]) and len(out) >= shape[0]
    if not fits or not out.is_contiguous() or out.device.type != "cpu":
        raise SettingsError(
            f"out: expected a contiguous CPU tensor {dtype} of at least {tuple(shape)}, "
            f"found {out.dtype} {tuple(out.shape)} on {out.device}"
        )


def _room(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the first `shape[0]` rows of `out`, or a new tensor."""
    return torch.empty(tuple(shape), dtype=dtype) if out is None else out[: shape[0]]


def _of_safetensors(file: bytes, out: Tensor) -> np.ndarray:
    """Return the labels of a safetensors response, and copy its rows to `out`."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", "safetensors") from error
    with as_own_error(UpstreamError, "the feed's answer is not a safetensors file of rows and labels", SafetensorError):
        tensors = load(file)
        out.copy_(tensors["activations"])
        labels = np.empty(len(out), ROW_LABEL)
        for name in ROW_LABEL.names or ():
            labels[name] = tensors[name].numpy()
    return labels
