"""A recording over time: tokens, bytes written, the queue and drops, and the clock that puts measurements beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from actscope.metrics.lines import IoLine, SystemLine
from actscope.metrics.report.series import LineClock
from actscope.recording.reading.recording import Recording

#: Most points of a rate over time.
_MOST_BINS = 400
_LEAST_SECONDS = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class RecordingSeries:
    """What a recording says of its writing. Times are wall seconds, and rates are those of n equal bins.

    Attributes:
        path: Name of the recording.
        edges: Ends of the bins, float64 [n + 1].
        tokens: Tokens computed in a second, float64 [n].
        written: Bytes handed to the store in a second, encoded, float64 [n]. Empty for a recording of 0.1.
        dropped: Rows dropped in a second, each once for each site, float64 [n].
        queue: Times and bytes of rows that waited, float64 [m] each.
        facts: Totals, as shown in the table.
    """

    path: str
    edges: np.ndarray
    tokens: np.ndarray
    written: np.ndarray
    dropped: np.ndarray
    queue: tuple[np.ndarray, np.ndarray]
    facts: Mapping[str, str]


def recording_series(recording: Recording) -> RecordingSeries:
    """Return the course of a recording.

    Raises:
        RecordingDamaged: Its records cannot be read.
    """
    history = recording.write_history()
    tokens = recording.wall_ns() / 1e9 if recording.n_rows else np.zeros(0)
    written, dropped = history.times_ns / 1e9, history.drop_times_ns / 1e9
    every = np.concatenate([tokens, written, dropped])
    edges = _edges(every)
    seconds = np.diff(edges)

    def rate(times: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        found: np.ndarray = np.histogram(times, edges, weights=weights)[0] / seconds
        return found

    lasted = float(np.ptp(every)) if len(every) else 0.0
    facts = {
        "requests": f"{len(recording.requests)}",
        "tokens": f"{recording.n_rows:,}",
        "sites": f"{len(recording.sites)}",
        "lasted": f"{lasted:.2f} s",
        "written": f"{history.stored_bytes.sum() / 1e6:,.1f} MB, of {history.source_bytes.sum() / 1e6:,.1f} MB before encoding",
        "most bytes in the queue": f"{history.queued_bytes.max(initial=0) / 1e6:,.1f} MB",
        "dropped rows": f"{history.dropped_rows.sum():,}",
    }
    if history.untimed_blocks:
        facts["blocks without a time"] = f"{history.untimed_blocks} (written by version 0.1)"
    return RecordingSeries(
        str(recording.path), edges, rate(tokens), rate(written, history.stored_bytes) if len(written) else np.zeros(0),
        rate(dropped, history.dropped_rows), (written, history.queued_bytes.astype(np.float64)), facts,
    )  # fmt: skip


def _edges(times: np.ndarray) -> np.ndarray:
    if not len(times):
        return np.array([0.0, 1.0])
    first, last = float(times.min()), float(times.max())
    lasted = max(last - first, _LEAST_SECONDS)
    bins = int(np.clip(lasted / _LEAST_SECONDS, 1, _MOST_BINS))
    return np.linspace(first, first + lasted * (1 + 1e-9), bins + 1)


def clock_of(recording: Recording | None) -> LineClock:
    """Return the wall time of lines. Lines of a boot that the recording knows are put on its own clock, exactly."""
    offsets = dict(recording.write_history().boot_ids) if recording is not None else {}

    def clock(line: IoLine | SystemLine) -> float:
        offset = offsets.get(line.boot_id)
        return line.timestamp if offset is None or not line.monotonic_ns else (line.monotonic_ns + offset) / 1e9

    return clock
