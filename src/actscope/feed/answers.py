"""The feed's JSON answers, as types. The pydantic models in `server/schemas.py` describe the same; a test compares the two."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class WindowFacts(TypedDict):
    """One window of the buffer."""

    state: str
    generation: int
    epoch: int
    number: int
    rows: int
    held_by: int


class BufferFacts(TypedDict):
    """The buffer when rows were taken."""

    buffer_size: int
    valid_samples: int


class GroupFacts(TypedDict):
    """One consumer group."""

    rows: int
    missed_rows: int
    ready_rows: int
    position: str


class FeedCounts(TypedDict):
    """Counts since the start. Every granted row is delivered, abandoned, or held."""

    filled_rows: int
    filled_windows: int
    granted_rows: int
    delivered_rows: int
    abandoned_rows: int
    held_rows: int
    refreshed_rows: int
    refills: int
    expired_leases: int
    forgotten_groups: int


class GeneratorFacts(TypedDict):
    """Runtime statistics of the generator."""

    pid: int | None
    phase: str
    restarts: int
    rows_per_second: float
    padding: float
    window: int | None


class SiteScale(TypedDict):
    """Normalisation of a site over all rows so far."""

    rows: int
    mean_norm: float
    norm_scale: float | None


class SiteVectors(SiteScale):
    """The same, with the mean and standard deviation of each dimension."""

    mean: list[float]
    std: list[float]


class FeedStats(TypedDict):
    """Answer of GET /stats."""

    state: str
    ready: bool
    failure: str | None
    ready_rows: int
    valid_samples: int
    window_rows: int
    windows: list[WindowFacts]
    serves: int
    max_samples: int
    memory_bytes: int
    seed: int
    position: str
    groups: dict[str, GroupFacts]
    counts: FeedCounts
    consumers: int
    generator: GeneratorFacts
    sites: dict[str, SiteScale]
    uptime_seconds: float


class FeedAbout(TypedDict):
    """Answer of GET /. `sites` is None while the model is being loaded."""

    name: NotRequired[str]
    version: str
    status: str
    model: str
    revision: NotRequired[str | None]
    engine: NotRequired[str | None]
    dataset: str
    dataset_fingerprint: NotRequired[str | None]
    texts: NotRequired[int | None]
    sites: NotRequired[list[str] | None]
    width: NotRequired[int | None]
    dtype: NotRequired[str | None]
    deterministic: NotRequired[bool | None]
    endpoints: dict[str, str]
