"""Workers as processes on this machine. Each has its own session, so that Ctrl-C reaches only the harvest itself."""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from actscope.errors import EngineError
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
from actscope.harvest.workers.worker_process import answers, orders

_GRACE_S = 5.0


class LocalCrew:
    """Crew of at most `size` processes on this machine."""

    def __init__(self, job: WorkerJob, size: int = 1) -> None:
        self.size = size
        self._job = job
        self._children: list[_WorkerProcess] = []

    def propose(self) -> Proposal:
        """Start a process and return its proposal of the plan. Raises the process's error, or EngineError if it died."""
        child = self._started()
        child.send(Propose())
        answer = child.wait()
        if isinstance(answer, Proposed):
            child.idle = True
            return answer.proposal
        self._let_go(child)
        raise (
            error_of(answer) if isinstance(answer, Raised) else EngineError(f"a worker {child.ending()} during startup")
        )

    def muster(self, n: int) -> None:
        """Start processes until there are `n`, or `size` if that is fewer. Does not wait for them."""
        while len(self._children) < min(n, self.size):
            self._started().send(Open())

    @property
    def free(self) -> int:
        """Return the number of processes that have opened the model and are idle."""
        return sum(child.idle for child in self._children)

    def submit(self, plan: HarvestPlan, unit: int) -> None:
        """Send a unit to an idle process. Call only while `free` is above 0."""
        child = next(child for child in self._children if child.idle)
        child.idle, child.unit = False, unit
        child.send(RunUnit(plans.encode(plan), unit))

    def wait(self, timeout_s: float) -> list[Event]:
        """Wait for messages of the processes, at most `timeout_s` seconds, and return their events."""
        with selectors.DefaultSelector() as waiting:
            for child in self._children:
                waiting.register(child.connection, selectors.EVENT_READ, child)
            ready = [key.data for key, _ in waiting.select(timeout_s)]
        return [event for child in ready for event in self._heard(child)]

    def close(self) -> None:
        """Terminate all processes, and wait until they have ended; kill those that do not end in time."""
        for child in self._children:
            child.terminate()
        while self._children:
            self._children.pop().reap()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [child.process.pid for child in self._children]

    def _started(self) -> _WorkerProcess:
        child = _WorkerProcess(self._job)
        self._children.append(child)
        return child

    def _heard(self, child: _WorkerProcess) -> Iterator[Event]:
        answer = child.take()
        if answer is None and not child.gone:
            return  # part of a message: the rest follows
        unit, child.unit, child.idle = child.unit, None, True
        if isinstance(answer, Ran):
            yield Done(answer.receipt)
        elif not isinstance(answer, Opened):
            self._let_go(child)
            yield WorkerFailed(unit, error_of(answer)) if isinstance(answer, Raised) else Died(unit, child.ending())

    def _let_go(self, child: _WorkerProcess) -> None:
        child.terminate()
        child.reap()
        self._children.remove(child)


class _WorkerProcess:
    """One worker process and the socket to it. `gone`: whether the socket has closed."""

    def __init__(self, job: WorkerJob) -> None:
        self.unit: int | None = None
        self.idle = False
        self.gone = False
        self.connection, theirs = socket.socketpair()
        self._buffer = bytearray()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "actscope.harvest.workers.worker_process", str(number)]
            self.process = subprocess.Popen(
                [*command, msgspec.json.encode(job).decode()],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def send(self, order: Order) -> None:
        try:
            orders.send(self.connection, order)
        except OSError:
            self.gone = True  # noticed when its answer is waited for

    def take(self) -> Answer | None:
        """Read once from the socket, and return an answer if one is complete. Sets `gone` if the process has ended."""
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            data = b""
        self.gone = self.gone or not data
        self._buffer += data
        return answers.take(self._buffer)

    def wait(self) -> Answer | None:
        """Wait for the next answer; None if the process ends instead."""
        while (answer := self.take()) is None and not self.gone:
            pass
        return answer

    def ending(self) -> str:
        """Return how the process ended, for a message."""
        code = self.process.poll()
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def terminate(self) -> None:
        """Close the socket, and send SIGTERM unless the process is ending already."""
        self.connection.close()
        if not self.gone:  # otherwise SIGTERM could hide how it ended
            self.process.terminate()

    def reap(self) -> None:
        """Wait for the process to end, and kill it after a grace period."""
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
