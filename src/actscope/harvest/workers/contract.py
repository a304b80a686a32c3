"""Interface of a crew, and the events that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from actscope.harvest.commit import Receipt
from actscope.harvest.plan import HarvestPlan, Proposal


@dataclass(frozen=True, slots=True)
class Done:
    """Event: a unit was committed."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """Event: a worker could not open the model (`unit` None) or compute a unit, and was dismissed. `error` can be raised."""

    unit: int | None
    error: Exception


@dataclass(frozen=True, slots=True)
class Died:
    """Event: a worker died. `unit`: the unit it was computing, or None. `why`: how it ended, for a message."""

    unit: int | None
    why: str


Event = Done | WorkerFailed | Died


class Crew(Protocol):
    """Up to `size` workers, each with the model in its memory."""

    size: int

    def propose(self) -> Proposal:
        """Start a worker and return its proposal of the plan.

        Raises:
            ActscopeError: The worker's error, such as a SettingsError, EngineError or HarvestError.
        """
        ...

    def muster(self, n: int) -> None:
        """Start workers until there are `n`, or `size` if that is fewer. This replaces lost ones. Does not wait for them."""
        ...

    @property
    def free(self) -> int:
        """Number of workers that have opened the model and are idle."""
        ...

    def submit(self, plan: HarvestPlan, unit: int) -> None:
        """Give a unit to an idle worker. Call only while `free` is above 0."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """Wait for events, at most `timeout_s` seconds, and return them.

        The list is also empty when a worker has opened the model and become idle.
        """
        ...

    def close(self) -> None:
        """End all workers at once. Units that they had not committed stay uncommitted."""
        ...
