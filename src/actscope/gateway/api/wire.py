"""What clients are sent, as types. The pydantic models in `schemas.py` describe the same objects; a test compares the two."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from actscope.gateway.scores.probe_table import HeaderCell, SaeFacts
from actscope.gateway.scores.request_log import State


class WireTokens(TypedDict):
    """Tokens of consecutive positions from `start`."""

    start: int
    ids: list[int]
    text: list[str]
    bytes: NotRequired[dict[str, str]]


class WireScores(TypedDict):
    """Scores of consecutive positions from `start`, one row each. `states` is absent if every cell is computed."""

    start: int
    rows: list[list[float | None]]
    states: NotRequired[list[str]]


class WireFeatures(TypedDict):
    """The strongest features of consecutive positions from `start`; None for a position without features."""

    start: int
    ids: list[list[int] | None]
    values: list[list[float] | None]


class WireCoverage(TypedDict):
    """Positions, those of them with scores, and those of these that came with a cached prefix.

    `missing_cells` and `why` are present if more cells have no value than those of the last position. `weights` is present if the
    model's weights had changed since it was loaded: each pair is a position and the version from there on.
    """

    present: int
    computed: int
    cached: int
    missing_cells: NotRequired[int]
    why: NotRequired[list[str]]
    weights: NotRequired[list[tuple[int, int]]]


class WireFinal(WireCoverage):
    """The end of a choice."""

    finish_reason: str | None


class WirePayload(TypedDict):
    """`choices[i].actscope`."""

    v: int
    request: NotRequired[str]
    prompt_tokens: NotRequired[int | None]
    probes: NotRequired[list[HeaderCell]]
    sae: NotRequired[SaeFacts | None]
    tokens: NotRequired[WireTokens]
    scores: NotRequired[WireScores]
    features: NotRequired[WireFeatures]
    final: NotRequired[WireFinal]


class WireRequest(WirePayload):
    """Answer of GET /v1/actscope/requests/{id}."""

    state: State


class WireUsage(TypedDict):
    """Token counts in OpenAI's shape."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class WireSummary(TypedDict):
    """One probe over all cells that were computed."""

    max: float | None
    argmax: int | None
    mean: float | None
    over_threshold: int | None


class WireToken(TypedDict):
    """Data of event `token`; the first one has the header."""

    v: int
    request: NotRequired[str]
    prompt_tokens: NotRequired[int | None]
    probes: NotRequired[list[HeaderCell]]
    tokens: WireTokens
    t: float


class WireProbeUpdate(TypedDict):
    """Data of event `probe_update`; `probes` where the columns differ from those of the row before."""

    v: int
    probes: NotRequired[list[HeaderCell]]
    scores: WireScores


class WireProbeFinal(WireCoverage):
    """Data of event `probe_final`."""

    v: int
    probes: dict[str, WireSummary]


class WireDone(TypedDict):
    """Data of event `done`."""

    v: int
    finish_reason: str | None
    usage: WireUsage
