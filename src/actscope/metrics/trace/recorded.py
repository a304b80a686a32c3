"""Requests, passes and tokens of a trace, from a recording. It knows when each pass was published, and no other border."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from actscope.clock import ClockPair
from actscope.metrics.trace.events import TraceEvent, TraceEvents
from actscope.recording.reading.recording import Recording


def clock_pair_of(recording: Recording) -> ClockPair | None:
    """Return the clock pair of the last session of a recording, or None if no record of one is left."""
    begun = [one for one in recording.sessions if not one.ended]
    return ClockPair(begun[-1].monotonic_ns, begun[-1].wall_ns, begun[-1].boot_id) if begun else None


def add_recording(
    events: TraceEvents, recording: Recording, boot_id: str, leave_out: Container[str], only: Container[str] = ()
) -> int:
    """Add the requests of a recording that were written in one boot.

    Args:
        events: The trace.
        recording: The recording.
        boot_id: The boot. Rows of others have times of another clock.
        leave_out: Requests that are in the trace already.
        only: Requests to add; empty: all.

    Returns:
        The number of rows of other boots.

    Raises:
        RecordingDamaged: Its records cannot be read.
    """
    labels, here = recording.labels(), _of_boot(recording, boot_id)
    texts, home = recording.texts, events.track(f"recording {recording.path.name}")
    steps, counts = np.unique(labels[here][["step", "time_ns"]], return_counts=True)
    computed = dict(zip(steps.tolist(), counts.tolist(), strict=True))
    passes: dict[tuple[int, int], TraceEvent] = {}
    for number, request in enumerate(recording.requests):
        if request in leave_out or (only and request not in only):
            continue
        rows = labels[here & (labels["request"] == number)]
        if not len(rows):
            continue
        begin, end = int(rows["time_ns"].min()), int(rows["time_ns"].max())
        track = events.track(request, home)
        whole = events.slice(
            events.track("request", track), begin, end, request, {"request": request, "rows": len(rows)}
        )
        tokens = events.track("tokens", track)
        for row in rows[np.argsort(rows["time_ns"], kind="stable")]:
            at, step, position, token = (int(row[name]) for name in ("time_ns", "step", "position", "token_id"))
            one = passes.get((step, at))
            if one is None:
                shown = {"number": step, "rows": computed[step, at]}
                one = passes[step, at] = events.instant(events.track("passes", home), at, f"pass {step}", shown)
            name = f"{position} {texts.get(token, '')}".rstrip()
            arrived = events.instant(tokens, at, name, {"position": position, "token_id": token})
            events.flow(*([whole] if at == begin and not whole.flows else []), one, arrived)
    return int(np.count_nonzero(~here))


def _of_boot(recording: Recording, boot_id: str) -> np.ndarray:
    """Return which rows were written in a boot: bool [n]."""
    begun = [one for one in recording.sessions if not one.ended]
    if not begun:
        return np.ones(recording.n_rows, bool)
    at = np.searchsorted([one.first_row for one in begun], recording.row_ids, side="right") - 1
    found: np.ndarray = np.array([one.boot_id == boot_id for one in begun], bool)[np.maximum(at, 0)]
    return found
