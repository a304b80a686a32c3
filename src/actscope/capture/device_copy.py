"""Transfer of rows from the model's device to the recorder.

    CPU    index_select (or clone) ──▶ recorder.put
    CUDA   index_select on the model's stream ──▶ copy to pinned memory on a side stream ──▶ event ──▶ DeviceCopy ──▶ put

The recorder owns the copy that arrives, so the model may overwrite its own tensors immediately.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actscope.errors import RecordingError
from actscope.frames import RowSink, Step


class Handover:
    """Forwards a step's rows to a sink, in order. Thread-safe if the sink is.

    `put` and `end` raise the sink's exceptions. For CUDA rows, whose copies complete asynchronously, the next call raises them.
    """

    def __init__(self, sink: RowSink, *, in_flight_bytes: int = 256 << 20) -> None:
        self.sink = sink
        self._copy: DeviceCopy | None = None
        self._in_flight_bytes = in_flight_bytes
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._lock = threading.Lock()

    def begin(self, step: Step) -> None:
        """Begin a step in the sink."""
        self.sink.begin(step)

    def put(self, step: Step, site: str, rows: Tensor) -> None:
        """Forward rows [n, d] on any device. The caller must not write to them afterwards."""
        if rows.is_cuda:
            self._put_cuda(step, site, rows)
        else:
            self.sink.put(step, site, rows.cpu())

    def end(self, step: Step, complete: bool = True) -> None:
        """End the step. Its copies may still be in flight; the sink receives `end` after them."""
        if self._copy is None:
            self.sink.end(step, complete)
        else:
            self._copy.send(_no_wait, lambda: self.sink.end(step, complete), 0)

    def drain(self) -> None:
        """Wait until the sink has received everything. Raises the first error of a pending delivery."""
        if self._copy is not None:
            self._copy.drain()

    def close(self) -> None:
        """Deliver everything and stop the copy thread. Raises the first error of a pending delivery."""
        if self._copy is not None:
            self._copy.close()

    def _put_cuda(self, step: Step, site: str, rows: Tensor) -> None:
        stream = self._stream(rows.device)
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        rows.record_stream(stream)  # keep the allocator from reusing this memory before the copy has read it
        self._get_device_copy().send(copied.synchronize, lambda: self.sink.put(step, site, host), host.nbytes)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        with self._lock:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            return self._streams[device]

    def _get_device_copy(self) -> DeviceCopy:
        with self._lock:
            if self._copy is None:
                self._copy = DeviceCopy(self._in_flight_bytes)
            return self._copy


def _no_wait() -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Transfer:
    ready: Callable[[], None]
    deliver: Callable[[], object]
    size: int


class DeviceCopy:
    """Thread that waits for each device-to-host copy and then delivers it, in the order of `send`.

    At most `limit` bytes are in flight, or one larger copy alone; `send` blocks beyond that (back pressure).
    After a delivery raised, later deliveries still run, because every sink counts its own losses. The next `send`, `drain` or
    `close` raises the first error.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._transfers: deque[_Transfer] = deque()
        self._held = 0
        self._busy = False
        self._closing = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="actscope-device-copy", daemon=True)
        self._thread.start()

    def send(self, ready: Callable[[], None], deliver: Callable[[], object], size: int) -> None:
        """Queue `deliver` to run after `ready` returns. This holds even if the call raises an earlier delivery's error."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._transfers.append(_Transfer(ready, deliver, size))
            self._held += size
            self._changed.notify_all()
            self._raise()

    def drain(self) -> None:
        """Wait until all deliveries have run. Raises the first error of a delivery."""
        with self._changed:
            self._changed.wait_for(lambda: not self._transfers and not self._busy)
            self._raise()

    def close(self) -> None:
        """Run all deliveries and stop the thread. Raises the first error of a delivery."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        while (transfer := self._next()) is not None:
            try:
                transfer.ready()
                transfer.deliver()
            except Exception as error:  # raised by the next send, drain or close
                self._error = self._error or error
                if not isinstance(error, RecordingError):
                    self._error = RecordingError(f"rows could not be copied from the device: {error}")
            with self._changed:
                self._held -= transfer.size
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> _Transfer | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._transfers) or self._closing)
            if not self._transfers:
                return None
            self._busy = True
            return self._transfers.popleft()
