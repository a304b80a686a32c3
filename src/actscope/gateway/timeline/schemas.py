"""Schemas of the timeline of a request."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from actscope.metrics.timeline.parts import PARTS


class TimelineClock(BaseModel):
    """One instant on both clocks: the times of a timeline are on the monotonic one."""

    monotonic_ns: int = Field(description="CLOCK_MONOTONIC, in nanoseconds")
    wall_ns: int = Field(description="the same instant in nanoseconds since the Unix epoch")
    boot_id: str = Field(description="the boot for which CLOCK_MONOTONIC is valid")


class GapPart(BaseModel):
    """A part of a gap."""

    name: str = Field(description="; ".join(f"`{name}`: {what}" for name, what in PARTS.items()))
    start_ns: int = Field(description="its beginning on the monotonic clock")
    ns: int = Field(description="its length in nanoseconds")


class GapPass(BaseModel):
    """A pass of the engine that lies in a gap."""

    number: int = Field(description="the engine's number of the pass")
    own: bool = Field(description="whether the request takes part in it")
    start_ns: int = Field(description="when its requests were known")
    ns: int = Field(description="time until its last known border")
    requests: int
    rows: int
    prompt_rows: int = Field(description="rows of prompts")


class TokenGap(BaseModel):
    """One token, and the time since the one before it, or since the request."""

    index: int = Field(description="number of the token in the answer, from 0")
    position: int = Field(description="its position in the request; 0 is the first prompt token")
    token_id: int
    text: str
    start_ns: int = Field(description="when the gap begins, on the monotonic clock")
    gap_ns: int = Field(description="its length: the sum of the lengths of all parts, and of `unexplained_ns`")
    parts: list[GapPart] = Field(description="the parts in order; a name may occur several times")
    unexplained_ns: int = Field(description="what is left over, because a time stamp is missing; it is no part")
    why: str = Field(description="one sentence")
    passes: list[GapPass]


class Timeline(BaseModel):
    """When the tokens of a request came, and why. Tokens that are not at the end of their way yet are left out."""

    v: Literal[1] = 1
    request: str
    state: Literal["running", "done", "aborted", "failed"]
    model: str
    measured_at: Literal["client", "engine"] = Field(
        description="where gaps are measured: `client`, when a token has left the gateway's send buffer; `engine`, when it was "
        "drawn, for answers that are not streamed and for requests that were sent to the engine directly"
    )
    clock: TimelineClock
    completion_tokens: int = Field(description="generated tokens that are known")
    median_gap_ns: int | None = Field(description="median over all tokens but the first; null with fewer than three")
    slowest: int | None = Field(
        description="index of the token with the longest gap, the first one aside if there are others"
    )
    tokens: list[TokenGap]
