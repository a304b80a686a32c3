"""Statistics of a flight recorder."""

from __future__ import annotations

from dataclasses import dataclass

from actscope.counters import counted, counting, current
from actscope.frames import SinkStats


@counting("flight")
@dataclass(slots=True)
class FlightStats(SinkStats):
    """Runtime statistics of a flight recorder.

    `dropped_rows` counts rows that the flight recorder did not take, once for all sites. `held_*`, `queued_bytes`, `seconds` (age
    of the oldest step), `requests`, `running` and `pending_marks` are current values. The other fields count since the start.
    `whole_requests`, `incomplete_requests`, `lost_requests` and `missed_ends` are described at `marks.Outcomes`.
    """

    steps: int = counted("work", "Passes that the flight recorder took.")
    rows: int = counted("work", "Rows that the flight recorder took, each once for all sites.")
    dropped_rows: int = counted(
        "loss",
        "Rows that the flight recorder did not take, because its queue or its disk was full; a later mark cannot keep them.",
        "Record fewer sites, or keep the flight recorder in memory or on a faster disk (--keep-on-disk, ACTSCOPE_FLIGHT_DIR).",
    )
    held_rows: int = current("Rows in the flight recorder.")
    held_steps: int = current("Passes in the flight recorder.")
    held_bytes: int = current("Bytes in the flight recorder.")
    held_bytes_max: int = current("Most bytes that were in the flight recorder.")
    queued_bytes: int = current("Bytes on their way into the flight recorder.")
    forgotten_rows: int = counted(
        "work", "Rows that left the flight recorder unmarked, because newer ones needed the room."
    )
    seconds: float = 0.0
    requests: int = current("Requests that the flight recorder knows.")
    running: int = current("Requests of the flight recorder that run.")
    marks: int = counted("work", "Marks that were set.")
    marked_requests: int = counted("work", "Requests that were marked.")
    pending_marks: int = current("Marks of requests that have not begun.")
    given_rows: int = counted("work", "Marked rows that were handed to the recording.")
    lost_rows: int = counted(
        "loss",
        "Marked rows that were not written, because the recording or the disk had failed.",
        "See the error in GET /v1/actscope/recording; free space on the disk, and start the server again.",
    )
    faults: int = counted(
        "fault",
        "Internal errors of the flight recorder; it goes on with the next pass.",
        "See the server's log for the first one, and report it.",
    )
    whole_requests: int = counted("work", "Marked requests that have ended and of which every row is in the recording.")
    incomplete_requests: int = counted(
        "loss",
        "Marked requests that have ended and of which some rows are in the recording and others are lost.",
        "See flight_dropped_rows, flight_lost_rows and drain_missed_rows for where; the server's log names the first ones.",
    )
    lost_requests: int = counted(
        "loss",
        "Marked requests that have ended and of which no row is in the recording.",
        "See the error in GET /v1/actscope/recording; mark sooner, or hold more (--keep-on-disk).",
    )
    missed_ends: int = counted(
        "fault",
        "Marked or held requests whose end did not arrive; they were ended because the engine does not run them any more.",
        "See model_failed_passes, sidecar_deaths and drain_missed_rows; the recording has them as aborted.",
    )
