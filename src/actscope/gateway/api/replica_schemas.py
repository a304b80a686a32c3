"""Schemas of the engines of a server, and of the counts of their rings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class RingCounts(BaseModel):
    """Steps and rows read from the ring, and rows lost or rejected, since the gateway attached to it."""

    steps: int
    rows: int
    missed_steps: int = Field(description="steps overwritten before they were read")
    missed_rows: int
    dropped_rows: int = Field(description="rows that the engine did not write")
    late_rows: int = Field(description="rows that came after their answer had ended")
    spurious_rows: int = Field(description="rows of rejected drafts, and rows after the end of a request")
    mismatched_rows: int = Field(
        description="rows whose token id differs from the token at their position; never delivered"
    )
    unreadable_tables: int


class ReplicaInfo(BaseModel):
    """One of the data-parallel engines of the server; of most servers there is one."""

    id: str = Field(description="id of its card")
    replica: int = Field(description="its number among the engines of one server, from 0")
    model: str
    pid: int
    device: str
    scores: Literal["read", "unreadable"] = Field(description="whether its ring is read; see `why`")
    controls: Literal["answer", "silent"] = Field(
        description="whether the process that loads probes and records answered when it was last asked; scores go on without it"
    )
    why: str | None = Field(None, description="what is wrong, if something is")
    generation: int | None = Field(None, description="generation of the probe table that its latest rows had")
    probes: list[str] = Field(description="ids of its probes, as far as they are known")
    ring: RingCounts | None = None
