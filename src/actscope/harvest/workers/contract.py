"""What a harvest asks of a crew, and what it hears from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from actscope.harvest.commit import Receipt
from actscope.harvest.plan import HarvestPlan, Proposal


@dataclass(frozen=True, slots=True)
class Done:
    """A unit is committed."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """A worker says that it cannot open the model (`unit` None) or compute a unit; it has been let go. `error` may be raised."""

    unit: int | None
    error: Exception


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone, and its unit with it; `unit` is None when it had none yet."""

    unit: int | None
    why: str


Event = Done | WorkerFailed | Died


class Crew(Protocol):
    """Up to `size` workers, each with the model in its memory."""

    size: int

    def propose(self) -> Proposal:
        """A worker's proposal of the plan. Raises what the worker raised: SettingsError, EngineError, HarvestError …"""
        ...

    def muster(self, n: int) -> None:
        """See to it that `n` workers, or `size` if that is fewer, are there or being opened; in place of lost ones too."""
        ...

    @property
    def free(self) -> int:
        """How many workers have opened the model and have nothing to do."""
        ...

    def submit(self, plan: HarvestPlan, unit: int) -> None:
        """Hand out a unit; only while `free`."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What has come of units and workers, as soon as there is something, at the latest after `timeout_s`.

        Also returns, with nothing, when a worker has become free.
        """
        ...

    def close(self) -> None:
        """End all workers, at once: what they had not committed is not committed."""
        ...
