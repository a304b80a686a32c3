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
from actscope.engines.vllm.sidecar_protocol import (
    Alive,
    RequestOptions,
    SetBank,
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

#: A dead sidecar is restarted, at most `_RESTARTS` times unless it lived for `_FORGIVEN_AFTER_S`.
_RESTARTS, _RESTART_PAUSE_S, _FORGIVEN_AFTER_S = 5, 2.0, 600.0
#: Capacity of the outbox. Beyond it the oldest options are dropped, counted, and not applied.
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
        "Times that the sidecar has ended before the model; it is started again, at most 5 times in a row. Scores go on; "
        "probes, marks and recordings wait.",
        "See vLLM's log for the reason. Once it is not started again, start vLLM again.",
    )
    untold: int = counted(
        "loss",
        "Recording options of requests that did not reach the sidecar; such a request is recorded as the server's settings say, "
        "and its `keep` is lost.",
        "See sidecar_deaths; mark the requests again while their rows are in the flight recorder.",
    )


class Sidecar:
    """Owns the sidecar process and the threads that talk to it.

    `staged` and `tell` are called on the model's thread and never wait. `beat` is called every 5 seconds on a thread of its own.
    """

    def __init__(self, start: SidecarStart, d: int, width: int, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._start, self._d, self._width = start, d, width
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
        self.untold = 0
        self.deaths = 0
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
        """Send a message. If the outbox is full, the oldest one is dropped and counted."""
        if isinstance(message, WeightsChanged):
            self._start = msgspec.structs.replace(self._start, weights=message.version, refused=message.refused)
        if len(self._outbox) == _OUTBOX:
            self.untold += 1
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
            return
        with contextlib.suppress(OSError):  # the sidecar has exited already
            connection.shutdown(socket.SHUT_WR)
        if not self._gone.wait(_PATIENCE_S):
            log.info("the sidecar (pid %s) finishes its recording, then it ends", self.pid)

    # --- on its own threads ---

    def _keep_alive(self) -> None:
        while not self._closing and self.deaths <= _RESTARTS:
            born = time.monotonic()
            try:
                self._live_once()
            except Exception as error:  # the boundary: a sidecar fault must never stop the model
                log.error("the sidecar could not be used: %s: %s", type(error).__name__, error)
            if self._closing:
                return
            self.deaths = 1 if time.monotonic() - born > _FORGIVEN_AFTER_S else self.deaths + 1
            again = "it is started again" if self.deaths <= _RESTARTS else "it is not started again"
            log.error(
                "the sidecar (pid %s) has ended; %s. Scores go on; probes, marks and recordings wait for it",
                self.pid,
                again,
            )
            time.sleep(_RESTART_PAUSE_S)

    def _live_once(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            _spawn(theirs)
        self._gone.clear()
        send(ours, self._start)
        self._connection = ours
        try:
            while (message := receive(ours)) is not None:
                self._hear(ours, message)
        finally:
            self._connection = None
            ours.close()
            self._gone.set()

    def _hear(self, connection: socket.socket, message: object) -> None:
        """Handle a message, and store what a restarted sidecar must know."""
        if isinstance(message, SetBank):
            self._stage(message)
            self._start = msgspec.structs.replace(self._start, state=message.state)
            with self._sending:
                send(connection, Staged(message.generation))
        elif isinstance(message, Alive):
            self.pid = message.pid
        elif isinstance(message, Taken):
            self._start = msgspec.structs.replace(self._start, taken=message.step)

    def _stage(self, message: SetBank) -> None:
        staged = StagedBank.of(message, self._d, self._width)
        with self._lock:
            self._staged = staged.over(self._staged)

    def _post(self) -> None:
        while not self._closing:
            self._something.wait()
            self._something.clear()
            while self._outbox and not self._closing:
                connection = self._connection
                if connection is None:
                    time.sleep(0.05)  # the sidecar is starting
                    continue
                data = self._outbox.popleft()
                try:
                    with self._sending:
                        connection.sendall(data)
                except OSError:
                    self.untold += 1

    def _pulse(self) -> None:
        while not self._over.wait(_BEAT_S):
            self._beat()


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
