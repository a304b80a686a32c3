"""The `actscope` payload of a choice, as the gateway sends it, checked. The format is in docs/wire.md."""

from __future__ import annotations

from typing import Annotated

import msgspec

from actscope.errors import ScoresError

#: Version of the payload that this client reads.
VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0)]


class ProbeColumn(msgspec.Struct, frozen=True):
    """A probe whose scores an answer has.

    Attributes:
        id: Name of the probe.
        site: Where it reads, such as "layers.19.resid_post".
        since: Generation in which it was added. The same id with another `since` is another probe.
    """

    id: str
    site: str
    since: int = 0


class Coverage(msgspec.Struct, frozen=True):
    """How many positions of an ended choice have scores.

    Attributes:
        present: Number of positions.
        computed: Number of positions whose scores were computed.
        cached: Number of computed positions whose scores came with a cached prefix.
    """

    present: Count
    computed: Count
    cached: Count = 0


class FinalBlock(msgspec.Struct, frozen=True):
    """End of a choice."""

    present: Count
    computed: Count
    cached: Count = 0
    finish_reason: str | None = None


class IdBlock(msgspec.Struct, frozen=True):
    """Tokens of consecutive positions from `start`."""

    start: Count
    ids: list[int]
    text: list[str]
    bytes: dict[str, str] = {}


class CellBlock(msgspec.Struct, frozen=True):
    """Scores of consecutive positions from `start`."""

    start: Count
    rows: list[list[float | None]]
    states: list[str] | None = None


class StrongestBlock(msgspec.Struct, frozen=True):
    """Features of consecutive positions from `start`."""

    start: Count
    ids: list[list[int] | None]
    values: list[list[float | None] | None]


class Payload(msgspec.Struct, frozen=True):
    """One payload of a choice, or a whole request of `GET /v1/actscope/requests/{id}`."""

    v: int
    request: str | None = None
    prompt_tokens: Count | None = None
    probes: list[ProbeColumn] | None = None
    tokens: IdBlock | None = None
    scores: CellBlock | None = None
    features: StrongestBlock | None = None
    final: FinalBlock | None = None
    state: str | None = None


def read_payload(found: object) -> Payload:
    """Check the types of a payload.

    Args:
        found: The payload as decoded JSON. Unknown keys are ignored.

    Raises:
        ScoresError: It is no payload, or one of another version.
    """
    version = found.get("v") if isinstance(found, dict) else None
    if version != VERSION:
        raise ScoresError(
            f"actscope payload: expected version {VERSION}, found {str(version)[:40]}: "
            "install the same version of actscope as the gateway"
        )
    try:
        return msgspec.convert(found, Payload)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ScoresError(f"actscope payload: {error}: this is not what an actscope gateway sends") from error
