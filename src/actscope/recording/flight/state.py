"""State of a flight recorder and its recording, as clients see it."""

from __future__ import annotations

from typing import Literal, TypedDict


class TriggerFacts(TypedDict):
    """A trigger rule and how often it fired."""

    rule: str
    firings: int
    probe_loaded: bool


class FlightFacts(TypedDict):
    """The flight recorder's history: what can still be marked."""

    where: str
    rows: int
    bytes: int
    limit_bytes: int
    seconds: float
    limit_seconds: float | None
    requests: int
    running: int
    forgotten_rows: int
    dropped_rows: int
    missed_ends: int
    faults: int


class KeptFacts(TypedDict):
    """What is in the recording, since the server began. The last three count marked requests that have ended (see `Outcomes`)."""

    rows: int
    durable_rows: int
    stored_bytes: int
    dropped_rows: int
    lost_rows: int
    whole_requests: int
    incomplete_requests: int
    lost_requests: int


class RecordingFacts(TypedDict):
    """Answer of GET /v1/actscope/recording by an engine that records."""

    recording: Literal[True]
    path: str
    sites: list[str]
    codec: str
    failure: str | None
    sample: float
    triggers: list[TriggerFacts]
    marks: int
    marked_requests: int
    pending_marks: int
    flight: FlightFacts
    kept: KeptFacts
