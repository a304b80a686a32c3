"""Statistics of a flight recorder."""

from __future__ import annotations

from dataclasses import dataclass

from actscope.frames import SinkStats


@dataclass(slots=True)
class FlightStats(SinkStats):
    """Runtime statistics of a flight recorder.

    `dropped_rows` counts rows that the flight recorder did not take, once for all sites. `held_*`, `queued_bytes`, `seconds` (age
    of the oldest step), `requests`, `running` and `pending_marks` are current values. The other fields count since the start.
    `whole_requests`, `incomplete_requests`, `lost_requests` and `missed_ends` are described at `marks.Outcomes`.
    """

    held_rows: int = 0
    held_steps: int = 0
    held_bytes: int = 0
    held_bytes_max: int = 0
    queued_bytes: int = 0
    forgotten_rows: int = 0
    seconds: float = 0.0
    requests: int = 0
    running: int = 0
    marks: int = 0
    marked_requests: int = 0
    pending_marks: int = 0
    given_rows: int = 0
    lost_rows: int = 0
    faults: int = 0
    whole_requests: int = 0
    incomplete_requests: int = 0
    lost_requests: int = 0
    missed_ends: int = 0
