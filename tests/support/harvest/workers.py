"""A crew of one worker in this very process, for tests of what happens around workers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from actscope.harvest import plan as plans
from actscope.harvest.plan import HarvestPlan, Proposal
from actscope.harvest.settings import HarvestSettings
from actscope.harvest.storage import open_storage
from actscope.harvest.worker import UnitWorker
from actscope.harvest.workers.contract import Died, Done, Event, WorkerFailed
from actscope.harvest.workers.messages import (
    Answer,
    Order,
    Propose,
    Proposed,
    Raised,
    Ran,
    RunUnit,
    WorkerJob,
    error_of,
)
from actscope.harvest.workers.worker_process import Station

SETTINGS: dict[str, Any] = {
    "model": "actscope/builtin", "dataset": "builtin", "sites": "first,last", "texts": 24, "unit_texts": 6, "context": 48,
}  # fmt: skip


def settings(**changes: Any) -> HarvestSettings:
    """Four small units of the built-in model."""
    return HarvestSettings(**{**SETTINGS, **changes})


#: Models that are open already, by what they were opened for: opening one takes seconds, and is not what is tested here.
_OPEN: dict[HarvestSettings, UnitWorker] = {}
_ONE_AT_A_TIME = threading.Lock()


class CrewHere:
    """`dies`: of a unit, whether its worker dies of it before it is run. `ran`: the units that were run, in order."""

    size = 1

    def __init__(self, job: WorkerJob, dies: Callable[[int], bool] = lambda unit: False) -> None:
        self._station = Station(job)
        self._job = job
        self._dies = dies
        self._waiting: deque[tuple[HarvestPlan, int]] = deque()
        self.ran: list[int] = []

    def propose(self) -> Proposal:
        answer = self._obey(Propose())
        if isinstance(answer, Raised):
            raise error_of(answer)
        assert isinstance(answer, Proposed)
        return answer.proposal

    def muster(self, n: int) -> None:
        pass

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    def submit(self, plan: HarvestPlan, unit: int) -> None:
        self._waiting.append((plan, unit))

    def wait(self, timeout_s: float) -> list[Event]:
        return [self._run(*self._waiting.popleft())] if self._waiting else []

    def close(self) -> None:
        pass

    def _run(self, plan: HarvestPlan, unit: int) -> Event:
        if self._dies(unit):
            return Died(unit, "was killed by SIGKILL")
        self.ran.append(unit)
        answer = self._obey(RunUnit(plans.encode(plan), unit))
        if isinstance(answer, Raised):
            return WorkerFailed(unit, error_of(answer))
        assert isinstance(answer, Ran)
        return Done(answer.receipt)

    def _obey(self, order: Order) -> Answer:
        with _ONE_AT_A_TIME:
            if (worker := _OPEN.get(self._job.settings)) is not None:
                worker._storage = open_storage(self._job.out)
                self._station._worker = worker
            answer = self._station.obey(order)
            if self._station._worker is not None:
                _OPEN[self._job.settings] = self._station._worker
            return answer


def crew(out: Any, **changes: Any) -> CrewHere:
    return CrewHere(WorkerJob(settings=settings(**changes), out=str(out)))


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""
