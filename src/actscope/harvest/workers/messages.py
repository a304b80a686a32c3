"""What is said between a crew and its workers: typed, and never pickled by us."""

from __future__ import annotations

import msgspec

from actscope import errors
from actscope.harvest.commit import Receipt
from actscope.harvest.plan import Proposal
from actscope.harvest.settings import HarvestSettings


class WorkerJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with."""

    settings: HarvestSettings
    out: str
    allow_http: bool = False


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Open the model, so that the first unit need not wait for it."""


class Propose(msgspec.Struct, frozen=True, tag="propose"):
    """Propose a plan."""


class RunUnit(msgspec.Struct, frozen=True, tag="run"):
    """Run a unit of this plan, as JSON."""

    plan: bytes
    unit: int


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The model is open."""


class Proposed(msgspec.Struct, frozen=True, tag="proposed"):
    proposal: Proposal


class Ran(msgspec.Struct, frozen=True, tag="ran"):
    receipt: Receipt


class Raised(msgspec.Struct, frozen=True, tag="raised"):
    """An error: its class's name, and what it says."""

    kind: str
    message: str


Order = Open | Propose | RunUnit
Answer = Opened | Proposed | Ran | Raised

#: Errors that cross, by name; any other is an EngineError with its name in front.
_CROSSING = ("SettingsError", "SiteError", "EngineError", "HarvestError", "HarvestDamaged", "ActscopeError")


def raised(error: Exception) -> Raised:
    """An error as a message."""
    kind = type(error).__name__
    if isinstance(error, errors.MissingExtra):
        return Raised("ActscopeError", str(error))
    if kind in _CROSSING:
        return Raised(kind, str(error))
    return Raised("EngineError", f"{kind}: {error}")


def error_of(message: Raised) -> Exception:
    """The error that a message stands for."""
    kind = message.kind if message.kind in _CROSSING else "EngineError"
    error: Exception = getattr(errors, kind)(message.message)
    return error
