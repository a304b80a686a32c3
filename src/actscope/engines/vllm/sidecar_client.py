"""Client of the sidecar in the model's process: starts it, reads its messages and restarts it. Never blocks a pass."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from actscope.counters import Counter, counted, counters_of, counting
from actscope.engines.vllm.bank import StagedBank
from actscope.engines.vllm.row_requests import RowRequests
from actscope.engines.vllm.sidecar_protocol import (
    Alive,
    Marked,
    RequestOptions,
    RunningRequests,
    SetBank,
    Settled,
    SidecarCounts,
    SidecarStart,
    Staged,
    Taken,
    WeightsChanged,
    pack,
    receive,
    send,
)
from actscope.errors import EngineError

log = logging.getLogger("actscope.vllm")

#: A dead sidecar is started again after a pause. It doubles, up to the longest, with each that lived for less than the third.
_RESTART_PAUSE_S, _LONGEST_PAUSE_S, _FORGIVEN_AFTER_S = 2.0, 60.0, 30.0
#: Capacity of the outbox. Beyond it the oldest messages are dropped and counted, and all options are sent anew once it is empty.
_OUTBOX = 4096
_BEAT_S = 5.0
#: How long a server that shuts down waits for its recording. The sidecar finishes it even if this is too short.
_PATIENCE_S = 1.0


@counting("sidecar")
@dataclass(slots=True)
class SidecarProcessCounts:
    """What befell the sidecar and the messages to it."""

    deaths: int = counted(
        "fault",
        "Times that the sidecar has ended before the model; it is started again each time. Scores go on; probes, marks and "
        "recordings wait.",
        "See vLLM's log for the reason.",
    )
    untold: int = counted(
        "fault",
        "Messages that the sidecar did not read in time, such as the recording options of a request; what they said is sent "
        "again once it reads.",
        "Give the engine's machine more cores if it goes on; see sidecar_deaths and drain_late_options.",
    )


class Sidecar:
    """Owns the sidecar process and the threads that talk to it.

    `staged` and `tell` are called on the model's thread and never wait. `beat` is called every 5 seconds on a thread of its own.

    Attributes:
        pid: Process id of the sidecar that runs now, or ran last.
        deaths: How often a sidecar ended that should not have.
        untold: Messages that were dropped because the sidecar did not read. What they said is sent again when it does.
    """

    def __init__(
        self,
        start: SidecarStart,
        d: int,
        width: int,
        beat: Callable[[], None],
        requests: RowRequests,
        account: Callable[[], dict[str, int]],
    ) -> None:
        """Start the threads, and the sidecar on one of them.

        Args:
            start: What it needs to start.
            d: Width of a row.
            width: Maximum number of probes.
            beat: Writes the heartbeats of the rings and publishes the counters.
            requests: The running requests, and those to be kept.
            account: Returns the counts of this process by name.
        """
        self._beat, self._requests, self._account = beat, requests, account
        self._start, self._d, self._width = start, d, width
        self._state, self._taken, self._counts = b"", Taken(-1), SidecarCounts()
        self._staged: StagedBank | None = None
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # two threads send; their messages must not interleave
        self._over = threading.Event()
        self._outbox: deque[bytes] = deque(maxlen=_OUTBOX)
        self._something = threading.Event()
        self._closing = False
        self._gone = threading.Event()
        self.pid: int | None = None
        self._connection: socket.socket | None = None
        self.untold = self.deaths = 0
        self._resend = self._report = False  # due once the outbox is empty: all options; the requests that run
        threading.Thread(target=self._keep_alive, name="actscope-sidecar", daemon=True).start()
        threading.Thread(target=self._post, name="actscope-post", daemon=True).start()
        threading.Thread(target=self._pulse, name="actscope-pulse", daemon=True).start()

    # --- on the model's thread ---

    def staged(self) -> StagedBank | None:
        """Return the bank change to apply now, or None. Each change is returned once."""
        if self._staged is None:
            return None
        with self._lock:
            staged, self._staged = self._staged, None
        return staged

    def tell(self, message: RequestOptions | WeightsChanged) -> None:
        """Send a message. If the outbox is full, the oldest one is dropped and counted, and all are sent anew later."""
        if isinstance(message, WeightsChanged):
            self._start = msgspec.structs.replace(self._start, weights=message.version, refused=message.refused)
        if len(self._outbox) == _OUTBOX:
            self.untold += 1
            self._resend = True
        self._outbox.append(pack(message))
        self._something.set()

    # --- from any thread ---

    def counters(self) -> list[Counter]:
        """Return the counters of the sidecar's process."""
        return counters_of(SidecarProcessCounts(self.deaths, self.untold))

    def hush(self) -> None:
        """Stop the heartbeat before the rings are closed."""
        self._over.set()

    def close(self) -> None:
        """End the sidecar cleanly. Waits at most 1 second for it to finish its recording."""
        self._closing = True
        self._something.set()
        connection = self._connection
        if connection is None:
            if self._requests.unsettled:
                log.error("%d kept requests are not recorded: there is no sidecar at the end", self._requests.unsettled)
            return
        with contextlib.suppress(OSError):  # the sidecar has exited already
            connection.shutdown(socket.SHUT_WR)
        if not self._gone.wait(_PATIENCE_S):
            log.info("the sidecar (pid %s) finishes its recording, then it ends", self.pid)

    # --- on its own threads ---

    def _keep_alive(self) -> None:
        in_a_row = 0
        while not self._over.is_set():
            born = time.monotonic()
            try:
                self._live_once()
            except Exception as error:  # the boundary: a sidecar fault must never stop the model
                log.error("the sidecar could not be used: %s: %s", type(error).__name__, error)
            if self._over.is_set():
                return
            self.deaths += 1
            in_a_row = 1 if time.monotonic() - born > _FORGIVEN_AFTER_S else in_a_row + 1
            pause = min(_LONGEST_PAUSE_S, _RESTART_PAUSE_S * 2 ** (in_a_row - 1))
            log.error(
                "the sidecar (pid %s) has ended; it is started again in %.0f s. Scores go on. Until then probes cannot be "
                "changed and marks are refused; %d requests that are to be kept are recorded by the next one as far as their "
                "rows are still in shared memory, and counted as incomplete or lost otherwise",
                self.pid,
                pause,
                self._requests.unsettled,
            )
            self._over.wait(pause)

    def _live_once(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            _spawn(theirs)
        self._gone.clear()
        try:
            self._resend = False
            self._outbox.clear()  # all that they say is in the start, or comes after it
            send(ours, self._whole_start())
            self._connection = ours
            self._something.set()
            while (message := receive(ours)) is not None:
                self._hear(ours, message)
        finally:
            self._connection = None
            ours.close()
            self._gone.set()

    def _whole_start(self) -> SidecarStart:
        return msgspec.structs.replace(
            self._start,
            state=self._state,
            taken=self._taken.step,
            taken_row=self._taken.row,
            counts=self._counts,
            restarts=self.deaths,
            running=self._requests.running(),
            wishes=self._requests.wishes(),
        )

    def _hear(self, connection: socket.socket, message: object) -> None:
        """Handle a message, and store what a restarted sidecar must know."""
        if isinstance(message, SetBank):
            self._stage(message)
            self._state = message.state
            with self._sending:
                send(connection, Staged(message.generation))
        elif isinstance(message, Alive):
            self.pid = message.pid
        elif isinstance(message, Taken):
            self._taken, self._counts = message, message.counts
        elif isinstance(message, Marked):
            self._requests.mark(message.request, message.why, message.name)
        elif isinstance(message, Settled):
            self._counts = message.counts
            self._requests.settle(message.requests)

    def _stage(self, message: SetBank) -> None:
        staged = StagedBank.of(message, self._d, self._width)
        with self._lock:
            self._staged = staged.over(self._staged)

    def _post(self) -> None:
        while not self._closing:
            self._something.wait()
            self._something.clear()
            while not self._closing and (connection := self._connection) is not None:
                data = self._next()
                if data is None:
                    break
                try:
                    with self._sending:
                        connection.sendall(data)
                except OSError:  # it has ended: the next one gets everything when it starts
                    break

    def _next(self) -> bytes | None:
        """Return what is to be sent next, or None."""
        with contextlib.suppress(IndexError):
            return self._outbox.popleft()
        if self._resend:
            self._resend = False
            again: list[RequestOptions | WeightsChanged] = [WeightsChanged(self._start.weights, self._start.refused)]
            again += self._requests.wishes()
            return b"".join(pack(message) for message in again)
        if self._report:
            self._report = False
            return pack(RunningRequests(self._requests.running(), self._account()))
        return None

    def _pulse(self) -> None:
        while not self._over.wait(_BEAT_S):
            self._beat()
            self._report = True
            self._something.set()


class NoSidecar:
    """Null object used when the sidecar is disabled."""

    pid: int | None = None
    untold = 0
    deaths = 0

    def staged(self) -> StagedBank | None:
        """Return None: there are never any probes."""
        return None

    def tell(self, message: RequestOptions | WeightsChanged) -> None:
        """Drop the message: there is no receiver."""

    def hush(self) -> None:
        """Do nothing: there is no heartbeat."""

    def close(self) -> None:
        """Do nothing: there is no process."""


def _spawn(connection: socket.socket) -> None:
    """Start a sidecar on the other end of the socket, outside this process's descendants (see `sidecar.launch`).

    Raises EngineError if it cannot be started.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "LD_PRELOAD"))}
    env["CUDA_VISIBLE_DEVICES"] = ""
    env.setdefault("OPENBLAS_NUM_THREADS", "1")  # an SVD fit must not use the model's cores
    command = [sys.executable, "-m", "actscope.engines.vllm.sidecar.launch", str(connection.fileno())]
    try:
        subprocess.run(command, pass_fds=[connection.fileno()], stdin=subprocess.DEVNULL, env=env, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"the sidecar cannot be started: {error}") from error
