"""Schemas of the feed's JSON responses, for its OpenAPI document and for clients."""

from __future__ import annotations

from pydantic import BaseModel, Field


class About(BaseModel):
    """Model, dataset, rows and endpoints of this feed. Most fields are null until the model is loaded."""

    name: str = "actscope feed"
    version: str
    status: str = Field(description="loading, filling, serving, ended or failed, as `state` of the statistics")
    model: str
    revision: str | None = None
    engine: str | None = None
    dataset: str
    dataset_fingerprint: str | None = None
    texts: int | None = None
    sites: list[str] | None = Field(None, description="null until the model is loaded")
    width: int | None = None
    dtype: str | None = None
    deterministic: bool | None = Field(None, description="whether reading the same texts again gives the same bits")
    endpoints: dict[str, str]


class Labels(BaseModel):
    """Label of each row: number of the text in its dataset, piece of the text, position in the piece, token id."""

    text: list[int]
    piece: list[int]
    position: list[int]
    token_id: list[int]


class BufferStats(BaseModel):
    """The buffer when the rows were taken."""

    buffer_size: int = Field(description="rows of the whole buffer")
    valid_samples: int = Field(description="rows that a new group could claim")


class Activations(BaseModel):
    """Rows as JSON: [num_samples, width], or [num_samples, sites, width] of several sites. Non-finite values are null."""

    shape: list[int]
    dtype: str
    sites: list[str]
    position: str = Field(description="position of the first row in the feed's order; `--resume` continues from it")
    next: str = Field(description="position of the row after the last one")
    missed_rows: int = Field(description="rows directly before these that this group never received")
    num_samples: int = Field(description="number of rows")
    indices: list[int] = Field(description="place of each row in the buffer, from 0")
    buffer_stats: BufferStats
    activations: list[list[float | None]] | list[list[list[float | None]]]
    labels: Labels | None = None


class Window(BaseModel):
    """State of one window of the buffer."""

    state: str
    generation: int
    epoch: int
    number: int
    rows: int
    held_by: int


class Group(BaseModel):
    """State of one group of consumers."""

    rows: int
    missed_rows: int
    ready_rows: int
    position: str


class Counts(BaseModel):
    """Exact counts since the start. Every granted row is delivered, abandoned, or held."""

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


class Generator(BaseModel):
    """State of the generator process."""

    pid: int | None
    phase: str
    restarts: int
    rows_per_second: float
    padding: float
    window: int | None


class Normalisation(BaseModel):
    """Statistics over all rows so far. Rows multiplied by `norm_scale` have a mean L2 norm of sqrt(width)."""

    rows: int
    mean_norm: float
    norm_scale: float | None


class SiteStatistics(Normalisation):
    """Normalisation statistics with the mean and the standard deviation of each dimension."""

    mean: list[float]
    std: list[float]


class Stats(BaseModel):
    """Runtime statistics of the feed."""

    state: str = Field(description="loading, filling, serving, ended or failed")
    ready: bool
    failure: str | None
    ready_rows: int = Field(description="rows that a new group could claim now")
    valid_samples: int = Field(description="the same as `ready_rows`, by the name of other activation servers")
    window_rows: int
    windows: list[Window]
    serves: int
    max_samples: int
    memory_bytes: int
    seed: int
    position: str = Field(
        description="position of the slowest group: every group has received or missed the rows before it"
    )
    groups: dict[str, Group]
    counts: Counts
    consumers: int = Field(description="connected consumers on the same machine")
    generator: Generator
    sites: dict[str, Normalisation]
    uptime_seconds: float


class Statistics(BaseModel):
    """Normalisation statistics of each site, with vectors over the dimensions."""

    sites: dict[str, SiteStatistics]


class Refreshed(BaseModel):
    """Number of rows that a refresh dropped."""

    dropped_rows: int


class Near(BaseModel):
    """Unix socket through which consumers on the same machine get the shared memory. `boot_id` names the machine's boot."""

    socket: str
    boot_id: str


class ErrorInfo(BaseModel):
    """Error in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """Body of every error response."""

    error: ErrorInfo
