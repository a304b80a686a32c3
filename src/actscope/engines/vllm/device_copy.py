"""From the model's device to the host: what a pass wrote, before the next one overwrites it.

    CPU    the buffers are read where they lie, on the model's thread, before it goes on
    CUDA   copies into pinned memory on a side stream; a thread waits for each and publishes. The model's stream waits for the
           copy before it writes the same buffers again, on the device: the host never waits.

The CUDA side is written against its interface and has been run on no GPU yet; `tests/engines/vllm` says which parts have.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actscope.engines.vllm.runners import PassBatch
from actscope.errors import SettingsError
from actscope.taps.tap import TapBuffers

log = logging.getLogger("actscope.vllm")


@dataclass(slots=True)
class Landed:
    """What a pass wrote, on the host: scores float32 [n, width]; rows [n, n_kept * d] as numpy holds the dtype, or None."""

    scores: np.ndarray
    rows: np.ndarray | None
    positions: np.ndarray
    token_ids: np.ndarray
    slots: np.ndarray | None
    fired: np.ndarray
    rejected: np.ndarray | None = None


Publish = Callable[[Landed], None]


class HostCrossing:
    """For models on a CPU: no copies; `publish` runs at once."""

    def __init__(self, buffers: TapBuffers) -> None:
        self._buffers = buffers

    def before_pass(self) -> None:
        """Nothing to wait for."""

    def cross(self, batch: PassBatch, with_rows: bool, publish: Publish) -> bool:
        """Publish what the pass wrote. True: it was not dropped."""
        buffers, n = self._buffers, batch.n_tokens
        landed = Landed(
            buffers.board[:n, : buffers.n_columns].numpy(),
            as_bits(buffers.store[:n]) if with_rows else None,
            batch.positions[:n].numpy(),
            batch.token_ids[:n].numpy(),
            None if batch.slots is None else batch.slots[:n].numpy(),
            buffers.fired.numpy(),
            None if batch.rejected is None else batch.rejected.numpy(),
        )
        publish(landed)
        return True

    def pass_over(self, publish: Callable[[], None]) -> None:
        """Publish something that has no rows, behind what is under way: nothing is."""
        publish()

    def close(self) -> None:
        """Nothing is under way."""


class CudaCrossing:
    """For models on a GPU: at most `depth` passes are under way; one more is dropped, which the caller counts."""

    def __init__(self, buffers: TapBuffers, max_rows: int, max_requests: int, limit_bytes: float) -> None:
        """Raises SettingsError where not even two passes' raw rows fit into `limit_bytes` of pinned memory."""
        self._buffers = buffers
        self._stream = torch.cuda.Stream(buffers.board.device)  # type: ignore[no-untyped-call]
        self._free: queue.SimpleQueue[_Berth] = queue.SimpleQueue()
        for _ in range(_depth(buffers, limit_bytes)):
            self._free.put(_Berth.like(buffers, max_rows, max_requests))
        self._landings: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._last: torch.cuda.Event | None = None
        self._thread = threading.Thread(target=self._run, name="actscope-crossing", daemon=True)
        self._thread.start()

    def before_pass(self) -> None:
        """The coming pass overwrites the buffers only after the last copy has read them."""
        if self._last is not None:
            torch.cuda.current_stream(self._buffers.board.device).wait_event(self._last)

    def cross(self, batch: PassBatch, with_rows: bool, publish: Publish) -> bool:
        """Start the copies. False when too many are under way: this pass is dropped."""
        try:
            berth = self._free.get_nowait()
        except queue.Empty:
            return False
        n = batch.n_tokens
        self._stream.wait_stream(torch.cuda.current_stream(self._buffers.board.device))
        with torch.cuda.stream(self._stream):
            berth.take(self._buffers, batch, n, with_rows)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._last = done
        has_slots = batch.slots is not None
        n_rejected = 0 if batch.rejected is None else len(batch.rejected)

        def land() -> None:
            try:
                done.synchronize()
                publish(berth.landed(self._buffers.n_columns, n, with_rows, has_slots, n_rejected))
                batch.rejected = (
                    None  # kept until here, so that nobody was given its memory before the copy had read it
                )
            finally:
                self._free.put(berth)

        self._landings.put(land)
        return True

    def pass_over(self, publish: Callable[[], None]) -> None:
        """Publish something that has no rows, behind what is under way, and on the same thread."""
        self._landings.put(publish)

    def close(self) -> None:
        """Publish what is under way, then end."""
        self._landings.put(None)
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while (land := self._landings.get()) is not None:
            try:
                land()
            except Exception:  # the boundary: a pass that cannot be published must not end the thread
                log.exception("a pass could not be published")


def _depth(buffers: TapBuffers, limit_bytes: float) -> int:
    """How many passes may be under way: four, or as many as memory allows, but two."""
    size = buffers.store.numel() * buffers.store.element_size()
    if 2 * size > limit_bytes:
        raise SettingsError(
            f"raw rows of a pass may take {size / 1e9:.2f} GB, and two passes are under way at least: that is more than "
            f"buffer_gb {limit_bytes / 1e9:.2f}. Tap fewer sites, lower --max-num-batched-tokens, or raise buffer_gb"
        )
    return min(4, int(limit_bytes // size))


@dataclass(slots=True)
class _Berth:
    """Pinned memory for what one pass wrote."""

    board: Tensor
    store: Tensor
    positions: Tensor
    token_ids: Tensor
    slots: Tensor
    fired: Tensor
    rejected: Tensor

    @classmethod
    def like(cls, buffers: TapBuffers, max_rows: int, max_requests: int) -> _Berth:
        def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=True)

        return cls(
            pinned(tuple(buffers.board.shape), torch.float32),
            pinned(tuple(buffers.store.shape), buffers.store.dtype),
            pinned((max_rows,), torch.int64),
            pinned((max_rows,), torch.int32),
            pinned((max_rows,), torch.int64),
            pinned(tuple(buffers.fired.shape), torch.int64),
            pinned((max_requests,), torch.int64),
        )

    def take(self, buffers: TapBuffers, batch: PassBatch, n: int, with_rows: bool) -> None:
        self.board[:n].copy_(buffers.board[:n], non_blocking=True)
        self.positions[:n].copy_(batch.positions[:n], non_blocking=True)
        self.token_ids[:n].copy_(batch.token_ids[:n], non_blocking=True)
        self.fired.copy_(buffers.fired, non_blocking=True)
        if batch.slots is not None:
            self.slots[:n].copy_(batch.slots[:n], non_blocking=True)
        if batch.rejected is not None:
            self.rejected[: len(batch.rejected)].copy_(batch.rejected, non_blocking=True)
        if with_rows:
            self.store[:n].copy_(buffers.store[:n], non_blocking=True)

    def landed(self, width: int, n: int, with_rows: bool, has_slots: bool, n_rejected: int) -> Landed:
        return Landed(
            self.board[:n, :width].numpy(),
            as_bits(self.store[:n]) if with_rows else None,
            self.positions[:n].numpy(),
            self.token_ids[:n].numpy(),
            self.slots[:n].numpy() if has_slots else None,
            self.fired.numpy(),
            self.rejected[:n_rejected].numpy() if n_rejected else None,
        )


def as_bits(rows: Tensor) -> np.ndarray:
    """A tensor on the host as numpy, without a copy; bfloat16, which numpy does not have, as the uint16 of its bits."""
    if rows.dtype == torch.bfloat16:
        bits: np.ndarray = rows.view(torch.int16).numpy().view(np.uint16)
        return bits
    found: np.ndarray = rows.numpy()
    return found
