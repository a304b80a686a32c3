"""Common interface of both kinds of streams, and conversion of bytes to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actscope.codecs import carrier, itemsize
from actscope.errors import RecordingError
from actscope.frames import Frame, Step
from actscope.recording.format.packets import SiteForm
from actscope.recording.spec import RecordingSpec

#: Called with (stage, amount done, total).
Progress = Callable[[str, int, int], None]
Steps = Iterator[tuple[Step, list[Frame]]]
Texts = Callable[[Iterable[int]], list[str]]


@dataclass(slots=True)
class Count:
    """Counts of labelled rows, requests, packets and skipped packets."""

    packets: int = 0
    skipped: int = 0
    rows: int = 0
    requests: set[str] = field(default_factory=set)


class StepStream(Protocol):
    """Packet stream, read as steps."""

    spec: RecordingSpec
    count: Count
    texts: Texts | None

    def steps(self, progress: Progress) -> Steps:
        """Iterate over the steps with their frames, and report the progress of the stream."""


def as_rows(data: bytes, form: SiteForm, where: str) -> np.ndarray:
    """Return bytes as rows [n, width] of the numpy dtype that carries their dtype."""
    size = form.width * itemsize(form.dtype)
    if not data or len(data) % size:
        raise RecordingError(
            f"{where}: {len(data)} bytes are no rows of {form.width} x {form.dtype}, which have {size} each"
        )
    return np.frombuffer(data, carrier(form.dtype)).reshape(-1, form.width)


def frame_of(site: str, parts: list[np.ndarray], dtype: str) -> Frame:
    """Return a frame of the concatenated parts, each [n, width] in the carrier of `dtype`."""
    return Frame(site, np.concatenate(parts), dtype)
