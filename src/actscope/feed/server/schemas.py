"""The shapes of the feed's JSON answers, for its OpenAPI document and for clients."""

from __future__ import annotations

from pydantic import BaseModel, Field


class About(BaseModel):
    """What this feed is, and where its rows are."""

    name: str = "actscope feed"
    version: str
    model: str
    revision: str | None = None
    engine: str | None = None
    dataset: str
    dataset_fingerprint: str | None = None
    texts: int | None = None
    sites: list[str] | None = Field(None, description="null while the model is being loaded")
    width: int | None = None
    dtype: str | None = None
    deterministic: bool | None = Field(None, description="whether the same texts give the same bits when read again")
    endpoints: dict[str, str]


class Labels(BaseModel):
    """Whose each row is: the text's number in its dataset, which piece of it, the position in that, the token."""

    text: list[int]
    piece: list[int]
    position: list[int]
    token_id: list[int]


class Activations(BaseModel):
    """Rows as JSON: [num_samples, width], or [num_samples, sites, width]; null for what is not finite."""

    shape: list[int]
    dtype: str
    sites: list[str]
    position: str = Field(description="where the first row stands in the feed's order; `--resume` goes on from it")
    next: str = Field(description="where the row after the last one stands")
    missed_rows: int = Field(description="rows before these that this group should have had, but did not")
    activations: list[list[float | None]] | list[list[list[float | None]]]
    labels: Labels | None = None


class Window(BaseModel):
    state: str
    generation: int
    epoch: int
    number: int
    rows: int
    held_by: int


class Group(BaseModel):
    rows: int
    missed_rows: int
    ready_rows: int
    position: str


class Counts(BaseModel):
    """Every granted row is delivered, abandoned, or held."""

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
    pid: int | None
    phase: str
    restarts: int
    rows_per_second: float
    padding: float
    window: int | None


class Normalisation(BaseModel):
    """Over all rows so far; rows times `norm_scale` have a mean L2 norm of sqrt(width)."""

    rows: int
    mean_norm: float
    norm_scale: float | None


class SiteStatistics(Normalisation):
    mean: list[float]
    std: list[float]


class Stats(BaseModel):
    """How the feed does."""

    state: str = Field(description="loading, filling, serving, ended or failed")
    ready: bool
    failure: str | None
    ready_rows: int = Field(description="rows that a new group could take at once")
    window_rows: int
    windows: list[Window]
    serves: int
    max_samples: int
    memory_bytes: int
    seed: int
    position: str = Field(description="before it, no group needs anything")
    groups: dict[str, Group]
    counts: Counts
    consumers: int = Field(description="consumers on the same machine")
    generator: Generator
    sites: dict[str, Normalisation]
    uptime_seconds: float


class Statistics(BaseModel):
    """Normalisation statistics of each site, dimension by dimension."""

    sites: dict[str, SiteStatistics]


class Refreshed(BaseModel):
    dropped_rows: int


class Near(BaseModel):
    """Where consumers on the same machine get the memory itself."""

    socket: str
    boot_id: str


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """What every refusal looks like."""

    error: ErrorInfo
