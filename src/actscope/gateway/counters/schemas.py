"""Pydantic models of the counters in `GET /v1/actscope/info`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class CounterSource(BaseModel):
    """The counters of one process, about one engine or about itself."""

    source: str = Field(
        description="the process that counts: `gateway`; `model` and `sidecar` (vLLM); `engine` (serve). Engines publish theirs "
        "every 5 seconds"
    )
    engine: str | None = Field(description="card id of the engine; null for counts that belong to no running engine")
    part: int = Field(description="index of the part of the engine (pipeline stage)")
    values: dict[str, int] = Field(description="value of each counter by name; `docs/counters.md` lists them")


class Trouble(BaseModel):
    """A counter above zero that tells of a loss, a doubt or a fault, summed over all processes and engines."""

    name: str
    value: int
    kind: Literal["loss", "doubt", "fault"]
    help: str = Field(description="what is counted")
    todo: str = Field(description="what to do about it")
