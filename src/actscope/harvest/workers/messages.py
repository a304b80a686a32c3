"""Messages between a crew and its workers. They are typed, and we never pickle them."""

from __future__ import annotations

import msgspec

from actscope import errors
from actscope.harvest.commit import Receipt
from actscope.harvest.plan import Proposal
from actscope.harvest.settings import HarvestSettings


class WorkerJob(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of a worker: the settings, and the storage."""

    settings: HarvestSettings
    out: str
    allow_http: bool = False


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Order: open the model, so that the first unit does not wait for it."""


class Propose(msgspec.Struct, frozen=True, tag="propose"):
    """Order: propose a plan."""


class RunUnit(msgspec.Struct, frozen=True, tag="run"):
    """Order: run a unit of a plan, which is given as JSON."""

    plan: bytes
    unit: int


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """Answer: the model is open."""


class Proposed(msgspec.Struct, frozen=True, tag="proposed"):
    """Answer: a proposal of the plan."""

    proposal: Proposal


class Ran(msgspec.Struct, frozen=True, tag="ran"):
    """Answer: the unit is committed."""

    receipt: Receipt


class Raised(msgspec.Struct, frozen=True, tag="raised"):
    """Answer: an error, with the name of its class and its message."""

    kind: str
    message: str


Order = Open | Propose | RunUnit
Answer = Opened | Proposed | Ran | Raised

#: Errors that keep their class. Any other becomes an EngineError whose message begins with the class name.
_CROSSING = ("SettingsError", "SiteError", "EngineError", "HarvestError", "HarvestDamaged", "ActscopeError")


def raised(error: Exception) -> Raised:
    """Encode an error as a message."""
    kind = type(error).__name__
    if isinstance(error, errors.MissingExtra):
        return Raised("ActscopeError", str(error))
    if kind in _CROSSING:
        return Raised(kind, str(error))
    return Raised("EngineError", f"{kind}: {error}")


def error_of(message: Raised) -> Exception:
    """Decode the error of a message."""
    kind = message.kind if message.kind in _CROSSING else "EngineError"
    error: Exception = getattr(errors, kind)(message.message)
    return error
