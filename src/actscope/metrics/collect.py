"""Measuring at intervals until it is enough, or the process is told to end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, Protocol, TypeVar

from actscope.metrics.lines import IoLine, SystemLine
from actscope.metrics.settings import CollectSettings
from actscope.metrics.writer import LineWriter

L = TypeVar("L", bound=IoLine | SystemLine, covariant=True)
Line = TypeVar("Line", bound=IoLine | SystemLine)


class Meter(Protocol[L]):
    """What `collect` runs."""

    def measure(self) -> L:
        """Return the line since the last call."""

    def close(self) -> None:
        """Release what it holds. Idempotent."""


class Collection(Generic[Line]):
    """One run of a meter. The end of an interval is a multiple of it after the start, so lines do not drift.

    Args:
        meter: What measures. It is closed at the end.
        settings: Interval and number of lines.
        writer: Where the lines go, or None. It is closed at the end, so all lines are in the file.
        show: Called with each line.
    """

    def __init__(
        self, meter: Meter[Line], settings: CollectSettings, writer: LineWriter | None, show: Callable[[Line], None]
    ) -> None:
        self._meter, self._settings, self._writer, self._show = meter, settings, writer, show
        self._stop = threading.Event()

    def stop(self) -> None:
        """Let the run end after a last line for the interval that has begun. May be called from a signal handler."""
        self._stop.set()

    def run(self) -> int:
        """Measure until `count` lines are there or it is stopped, and return the number of lines.

        Raises:
            MetricsError: The kernel's counts cannot be read, or a line cannot be written.
        """
        try:
            return self._lines()
        finally:
            try:
                self._meter.close()
            finally:
                if self._writer is not None:
                    self._writer.close()

    def _lines(self) -> int:
        due, lines, interval = time.monotonic(), 0, self._settings.interval
        while not self._stop.is_set() and (not self._settings.count or lines < self._settings.count):
            due = max(due + interval, time.monotonic())  # after a suspend, missed ends are not made up for
            self._stop.wait(due - time.monotonic())
            line = self._meter.measure()
            lines += 1
            if self._writer is not None:
                self._writer.put(line)
            self._show(line)
        return lines


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM and SIGINT while the block runs. A second signal has its usual effect."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        stop()

    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
