"""Handing rows from the model's device to the recorder.

    CPU    index_select (or clone) ──▶ recorder.put
    CUDA   index_select on the model's stream ──▶ copy to pinned memory on a side stream ──▶ event ──▶ ferry ──▶ put

Either way one copy is made that the recorder owns; the model may overwrite its own tensors at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from actscope.errors import RecordingError
from actscope.frames import Step


class RowSink(Protocol):
    """What takes rows while a pass runs; `actscope.recording.writing.recorder.Recorder` is one."""

    def begin(self, step: Step) -> None: ...

    def put(self, step: Step, site: str, rows: Any) -> Any: ...

    def end(self, step: Step, complete: bool = True) -> None: ...


class Handover:
    """Passes a step's rows to a sink, in order. Thread-safe where the sink is.

    What the sink raises comes out of `put` or `end`; for rows of a GPU, whose copies end later, out of the next call.
    """

    def __init__(self, sink: RowSink, *, in_flight_bytes: int = 256 << 20) -> None:
        self.sink = sink
        self._ferry: DeviceCopy | None = None
        self._in_flight_bytes = in_flight_bytes
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._lock = threading.Lock()

    def begin(self, step: Step) -> None:
        self.sink.begin(step)

    def put(self, step: Step, site: str, rows: Tensor) -> None:
        """Rows [n, d] on any device, which nobody else writes to from now on."""
        if rows.is_cuda:
            self._put_cuda(step, site, rows)
        else:
            self.sink.put(step, site, rows.cpu())

    def end(self, step: Step, complete: bool = True) -> None:
        """The step has ended; its copies may still be under way."""
        if self._ferry is None:
            self.sink.end(step, complete)
        else:
            self._ferry.send(_no_wait, lambda: self.sink.end(step, complete), 0)

    def drain(self) -> None:
        """Return when the sink has everything. Raises what it has raised meanwhile."""
        if self._ferry is not None:
            self._ferry.drain()

    def close(self) -> None:
        """Drain, and end the ferry."""
        if self._ferry is not None:
            self._ferry.close()

    def _put_cuda(self, step: Step, site: str, rows: Tensor) -> None:
        stream = self._stream(rows.device)
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        rows.record_stream(stream)  # its memory is not given to anybody else before the copy has read it
        self._the_ferry().send(copied.synchronize, lambda: self.sink.put(step, site, host), host.nbytes)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        with self._lock:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            return self._streams[device]

    def _the_ferry(self) -> DeviceCopy:
        with self._lock:
            if self._ferry is None:
                self._ferry = DeviceCopy(self._in_flight_bytes)
            return self._ferry


def _no_wait() -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Load:
    ready: Callable[[], None]
    deliver: Callable[[], Any]
    size: int


class DeviceCopy:
    """One thread that waits for each copy to be done and then delivers it, in the order in which they were sent.

    At most `limit` bytes are under way; `send` waits beyond that. After a delivery has raised, the rest is still delivered
    (every sink counts its own losses), and the first error is raised by the next `send`, `drain` or `close`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loads: deque[_Load] = deque()
        self._held = 0
        self._busy = False
        self._closing = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="actscope-ferry", daemon=True)
        self._thread.start()

    def send(self, ready: Callable[[], None], deliver: Callable[[], Any], size: int) -> None:
        """Deliver as soon as `ready` returns. Raises what an earlier delivery has raised; this one is sent all the same."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._loads.append(_Load(ready, deliver, size))
            self._held += size
            self._changed.notify_all()
            self._raise()

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._loads and not self._busy)
            self._raise()

    def close(self) -> None:
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
        while (load := self._next()) is not None:
            try:
                load.ready()
                load.deliver()
            except Exception as error:  # told to whoever sends next
                self._error = self._error or error
                if not isinstance(error, RecordingError):
                    self._error = RecordingError(f"rows could not be copied from the device: {error}")
            with self._changed:
                self._held -= load.size
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> _Load | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._loads) or self._closing)
            if not self._loads:
                return None
            self._busy = True
            return self._loads.popleft()
