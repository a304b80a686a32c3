"""Workers as actors of a Ray cluster. This uses Ray Core, not Ray Data.

A unit is self-contained work whose result is put into the storage; the actor returns only a receipt of some hundred bytes. Ray
Data would move rows through its object store and order blocks by itself. Here each actor holds the model and writes shards
directly to the storage, and the harvest, which must know about claims and receipts anyway, submits and retries units.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import msgspec

from actscope.errors import EngineError, MissingExtra, SettingsError
from actscope.harvest import plan as plans
from actscope.harvest.plan import HarvestPlan, Proposal
from actscope.harvest.workers.contract import Died, Done, Event, WorkerFailed
from actscope.harvest.workers.messages import (
    Answer,
    Open,
    Opened,
    Order,
    Propose,
    Proposed,
    Raised,
    Ran,
    RunUnit,
    WorkerJob,
    error_of,
)
from actscope.runtime.decoding import CheckedDecoder, decode_msgpack

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtra("ray", "ray") from error

_encode = msgspec.msgpack.encode
_orders: CheckedDecoder[Order] = CheckedDecoder(Order, EngineError, "a message of the cluster does not decode")
_answers: CheckedDecoder[Answer] = CheckedDecoder(Answer, EngineError, "a message of the cluster does not decode")


class RayCrew:
    """Crew of at most `size` actors, spread over the nodes; 0 takes as many as the cluster has room for.

    Joins the cluster at `address`, else the one that RAY_ADDRESS names, else one that runs on this machine, else starts one. If
    this process is connected to a cluster already, that one is used. Every node needs this version of actscope, the dataset
    under the same name, and the storage's credentials.

    Raises:
        EngineError: The cluster cannot be joined.
        SettingsError: The cluster has no room for a single worker.
    """

    def __init__(
        self,
        job: WorkerJob,
        size: int = 0,
        *,
        address: str = "",
        cpus_per_worker: float = 0,
        gpus_per_worker: float = 0,
    ) -> None:
        self._ours = _join(address)
        self._needs = {"CPU": cpus_per_worker or float(job.settings.threads), "GPU": float(gpus_per_worker)}
        self.size = _size(size, self._needs)
        self._job = _encode(job)
        self._seats: list[_Seat] = []

    def propose(self) -> Proposal:
        """Start an actor and return its proposal of the plan. Raises the actor's error, or EngineError if it died."""
        seat = self._started(Propose())
        answer = seat.answer()
        if isinstance(answer, Proposed):
            seat.idle = True
            return answer.proposal
        self._let_go(seat)
        raise error_of(answer) if isinstance(answer, Raised) else EngineError(f"a worker {answer} during startup")

    def muster(self, n: int) -> None:
        """Start actors until there are `n`, or `size` if that is fewer. Does not wait for them."""
        while len(self._seats) < min(n, self.size):
            self._started(Open())

    @property
    def free(self) -> int:
        """Return the number of actors that have opened the model and are idle."""
        return sum(seat.idle for seat in self._seats)

    def submit(self, plan: HarvestPlan, unit: int) -> None:
        """Send a unit to an idle actor. Call only while `free` is above 0."""
        seat = next(seat for seat in self._seats if seat.idle)
        seat.idle, seat.unit = False, unit
        seat.send(RunUnit(plans.encode(plan), unit))

    def wait(self, timeout_s: float) -> list[Event]:
        """Wait for one answer of an actor, at most `timeout_s` seconds, and return its events."""
        pending = {seat.reference: seat for seat in self._seats if seat.reference is not None}
        if not pending:
            return []
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout_s)
        return [event for reference in ready for event in self._heard(pending[reference])]

    def close(self) -> None:
        """Kill all actors. Disconnect from the cluster if this crew connected to it."""
        for seat in list(self._seats):
            self._let_go(seat)
        if self._ours:
            ray.shutdown()

    def _started(self, order: Order) -> _Seat:
        seat = _Seat(self._job, self._needs)
        self._seats.append(seat)
        seat.send(order)
        return seat

    def _heard(self, seat: _Seat) -> list[Event]:
        answer = seat.answer()
        unit, seat.unit, seat.idle = seat.unit, None, True
        if isinstance(answer, Ran):
            return [Done(answer.receipt)]
        if isinstance(answer, Opened):
            return []
        self._let_go(seat)
        return [WorkerFailed(unit, error_of(answer)) if isinstance(answer, Raised) else Died(unit, str(answer))]

    def _let_go(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        seat.end()


class _Seat:
    """One actor, and the order that it is working on."""

    def __init__(self, job: bytes, needs: dict[str, float]) -> None:
        self.unit: int | None = None
        self.idle = False
        self.reference: Any = None
        # Ray restarts no actors: the harvest must submit the unit again anyway, to any idle worker
        options: Any = {
            "num_cpus": needs["CPU"],
            "num_gpus": needs["GPU"],
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
        }
        self._actor: Any = ray.remote(**options)(_Station).remote(job)

    def send(self, order: Order) -> None:
        self.reference = self._actor.obey.remote(_encode(order))

    def answer(self) -> Answer | str:
        """Wait for the answer. Return it, or a text that says how the actor was lost."""
        reference, self.reference = self.reference, None
        try:
            return _answers.decode(ray.get(reference))
        except RayError as error:
            return f"was lost ({type(error).__name__}: {_brief(error)})"

    def end(self) -> None:
        ray.kill(self._actor)


class _Station:
    """Ray actor around a Station. It takes and returns bytes, so that Ray pickles nothing but bytes."""

    def __init__(self, job: bytes) -> None:
        from actscope.harvest.workers.worker_process import Station

        self._station = Station(decode_msgpack(job, WorkerJob, EngineError, "the job of a worker"))

    def obey(self, order: bytes) -> bytes:
        return _encode(self._station.obey(_orders.decode(order)))


def _join(address: str) -> bool:
    """Connect to a cluster. Return whether this call connected, so that the crew must disconnect."""
    if ray.is_initialized():
        return False
    try:
        ray.init(
            address=address or None,
            include_dashboard=False if address == "local" else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster"
        raise EngineError(
            f"{where} cannot be joined: {_brief(error)}; see `ray status`, or start one with `ray start`"
        ) from error
    return True


def _size(asked: int, needs: dict[str, float]) -> int:
    """Return the number of workers: as requested, at most those that fit into the cluster. Raises SettingsError if none fits."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = min(int(has.get(kind, 0) / need) for kind, need in needs.items() if need)
    if room < 1:
        wanted = ", ".join(f"{need:g} {kind}" for kind, need in needs.items() if need)
        found = ", ".join(f"{has.get(kind, 0):g} {kind}" for kind in needs)
        raise SettingsError(
            f"a worker needs {wanted}; the whole Ray cluster has {found}: see --cpus-per-worker, --threads"
        )
    return min(asked, room) if asked else room


def _brief(error: BaseException) -> str:
    """Return the first line of a Ray error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
