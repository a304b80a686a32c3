"""Device-to-host copies of what a pass wrote, completed before the next pass overwrites it.

    CPU    no copy: the buffers are read in place, synchronously on the model's thread
    CUDA   asynchronous copies into pinned memory on a side stream; a thread waits for each copy and publishes it. The
           model's stream waits on a CUDA event before it overwrites the buffers, so the host never blocks.

The CUDA path has not been run on a GPU yet; `tests/engines/vllm` says which parts have been tested.
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

from actscope.clock import monotonic_ns
from actscope.counters import counted, counting
from actscope.engines.vllm.runners import PassBatch
from actscope.errors import SettingsError
from actscope.taps.tap import TapBuffers

log = logging.getLogger("actscope.vllm")


@dataclass(slots=True)
class HostPass:
    """One pass's output on the host: scores float32 [n, width]; rows [n, n_kept * d] (bfloat16 as uint16 bits), or None.

    The arrays are views: they are valid only during the `publish` call that receives them. `landed_ns` is the time at which
    copies from a device were done; 0 if there were none.
    """

    scores: np.ndarray
    rows: np.ndarray | None
    positions: np.ndarray
    token_ids: np.ndarray
    slots: np.ndarray | None
    fired: np.ndarray
    rejected: np.ndarray | None = None
    landed_ns: int = 0


Publish = Callable[[HostPass], None]


@counting("copier")
@dataclass(slots=True)
class CopierCounts:
    """Counts of what befell the copies from the device."""

    failed_passes: int = counted(
        "fault",
        "Passes that were lost between the device and the rings, because their copies or their publishing failed.",
        "See vLLM's log for the first one, and report it.",
    )


class HostCopier:
    """Copier for CPU models: makes no copies and calls `publish` synchronously."""

    failed = 0  #: always: `publish` runs in the caller, who sees what it raises

    def __init__(self, buffers: TapBuffers) -> None:
        self._buffers = buffers

    def before_pass(self) -> None:
        """Do nothing: no copy is ever pending."""

    def copy(self, batch: PassBatch, with_rows: bool, publish: Publish, lost: Callable[[], None]) -> bool:
        """Publish the pass synchronously. Always returns True: a CPU pass is never dropped."""
        buffers, n = self._buffers, batch.n_tokens
        on_host = HostPass(
            buffers.board[:n, : buffers.n_columns].numpy(),
            as_bits(buffers.store[:n]) if with_rows else None,
            batch.positions[:n].numpy(),
            batch.token_ids[:n].numpy(),
            None if batch.slots is None else batch.slots[:n].numpy(),
            buffers.fired.numpy(),
            None if batch.rejected is None else batch.rejected.numpy(),
        )
        publish(on_host)
        return True

    def pass_over(self, publish: Callable[[], None]) -> None:
        """Publish a pass without rows. Copies are synchronous on CPU, so nothing is pending before it."""
        publish()

    def close(self) -> None:
        """Do nothing: no copy is ever pending."""


class CudaCopier:
    """Copier for GPU models. At most `depth` (2 to 4) passes are in flight; further passes are dropped.

    Attributes:
        failed: Passes whose copies were started and could not be published. Only the first one is logged.
    """

    def __init__(
        self, buffers: TapBuffers, max_rows: int, max_requests: int, limit_bytes: float, *, rows: bool = True
    ) -> None:
        """Allocate the pinned memory; without `rows`, none for raw rows.

        Raises SettingsError if the raw rows of two passes do not fit into `limit_bytes`.
        """
        self._buffers = buffers
        self.failed = 0
        depth = depth_of(buffers, limit_bytes) if rows else _MOST_IN_FLIGHT
        self._stream = torch.cuda.Stream(buffers.board.device)  # type: ignore[no-untyped-call]
        self._free: queue.SimpleQueue[_Staging] = queue.SimpleQueue()
        for _ in range(depth):
            self._free.put(_Staging.like(buffers, max_rows, max_requests, rows))
        self._pending: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._last: torch.cuda.Event | None = None
        self._thread = threading.Thread(target=self._run, name="actscope-copier", daemon=True)
        self._thread.start()

    def before_pass(self) -> None:
        """Make the model's stream wait until the last copy has read the buffers. Does not block the host."""
        if self._last is not None:
            torch.cuda.current_stream(self._buffers.board.device).wait_event(self._last)

    def copy(self, batch: PassBatch, with_rows: bool, publish: Publish, lost: Callable[[], None]) -> bool:
        """Start the copies on the side stream; `publish` runs on the copier thread when they are done, `lost` if they failed.

        Returns False if all pinned buffers are in use. The pass is then dropped, and the caller counts it.
        """
        try:
            staging = self._free.get_nowait()
        except queue.Empty:
            return False
        n = batch.n_tokens
        try:
            done = self._start(staging, batch, n, with_rows)
        except BaseException:  # what was started writes there before anything later on this stream does
            self._free.put(staging)
            raise
        self._last = done
        has_slots = batch.slots is not None
        n_rejected = 0 if batch.rejected is None else len(batch.rejected)

        def land() -> None:
            try:
                try:
                    done.synchronize()
                    on_host = staging.on_host(self._buffers.n_columns, n, with_rows, has_slots, n_rejected)
                    on_host.landed_ns = monotonic_ns()
                except Exception:
                    lost()
                    raise
                publish(on_host)
                # held until here so that the allocator could not reuse its memory before the copy
                batch.rejected = None
            finally:
                self._free.put(staging)

        self._pending.put(land)
        return True

    def _start(self, staging: _Staging, batch: PassBatch, n: int, with_rows: bool) -> torch.cuda.Event:
        """Enqueue the copies, and return the event that says that they are done."""
        self._stream.wait_stream(torch.cuda.current_stream(self._buffers.board.device))
        with torch.cuda.stream(self._stream):
            staging.take(self._buffers, batch, n, with_rows)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return done

    def pass_over(self, publish: Callable[[], None]) -> None:
        """Publish a pass without rows, in order: on the copier thread, after the passes in flight."""
        self._pending.put(publish)

    def close(self) -> None:
        """Publish the passes in flight, then end the thread. Waits at most 2 seconds."""
        self._pending.put(None)
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while (land := self._pending.get()) is not None:
            try:
                land()
            except Exception:  # the boundary: a pass that cannot be published must not end the thread
                self.failed += 1
                if self.failed == 1:
                    log.exception("a pass could not be published (further ones are only counted)")


#: Passes in flight if memory allows.
_MOST_IN_FLIGHT = 4


def depth_of(buffers: TapBuffers, limit_bytes: float) -> int:
    """Return how many passes may be in flight: 4, or fewer (but at least 2) if memory is limited.

    Raises SettingsError, with the sizes, if that is not enough for two.
    """
    size = buffers.store.numel() * buffers.store.element_size()
    if 2 * size > limit_bytes:
        raise SettingsError(
            f"raw rows of a pass may take {size / 1e9:.2f} GB, and two passes are under way at least: that is more than "
            f"buffer_gb {limit_bytes / 1e9:.2f}. Tap fewer sites, lower --max-num-batched-tokens, or raise buffer_gb"
        )
    return min(_MOST_IN_FLIGHT, int(limit_bytes // size))


@dataclass(slots=True)
class _Staging:
    """Pinned memory for the output of one pass."""

    board: Tensor
    store: Tensor
    positions: Tensor
    token_ids: Tensor
    slots: Tensor
    fired: Tensor
    rejected: Tensor

    @classmethod
    def like(cls, buffers: TapBuffers, max_rows: int, max_requests: int, rows: bool = True) -> _Staging:
        """Allocate pinned memory for up to `max_rows` rows and `max_requests` requests, and for raw rows if there are any."""

        def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=True)

        return cls(
            pinned(tuple(buffers.board.shape), torch.float32),
            pinned(tuple(buffers.store.shape) if rows else (0, buffers.store.shape[1]), buffers.store.dtype),
            pinned((max_rows,), torch.int64),
            pinned((max_rows,), torch.int32),
            pinned((max_rows,), torch.int64),
            pinned(tuple(buffers.fired.shape), torch.int64),
            pinned((max_requests,), torch.int64),
        )

    def take(self, buffers: TapBuffers, batch: PassBatch, n: int, with_rows: bool) -> None:
        """Enqueue the copies of the first `n` rows on the current stream."""
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

    def on_host(self, width: int, n: int, with_rows: bool, has_slots: bool, n_rejected: int) -> HostPass:
        """Return numpy views of the copied data. They are valid until the staging buffer is reused."""
        return HostPass(
            self.board[:n, :width].numpy(),
            as_bits(self.store[:n]) if with_rows else None,
            self.positions[:n].numpy(),
            self.token_ids[:n].numpy(),
            self.slots[:n].numpy() if has_slots else None,
            self.fired.numpy(),
            self.rejected[:n_rejected].numpy() if n_rejected else None,
        )


def as_bits(rows: Tensor) -> np.ndarray:
    """Return a host tensor as numpy without a copy. bfloat16, which numpy lacks, is returned as uint16 bits."""
    if rows.dtype == torch.bfloat16:
        bits: np.ndarray = rows.view(torch.int16).numpy().view(np.uint16)
        return bits
    found: np.ndarray = rows.numpy()
    return found
