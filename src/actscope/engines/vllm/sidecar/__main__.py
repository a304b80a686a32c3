"""Sidecar process: `python -m actscope.engines.vllm.sidecar FD`, started by the plugin, which holds the socket's other end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actscope.counters import Counter, counters_of, meanings
from actscope.engines.controls import control_routes
from actscope.engines.flights import RecordingCounts, flight_counters
from actscope.engines.http import json_response, listening
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar.drain import DrainStats, RowDrain
from actscope.engines.vllm.sidecar.facts import KnownModel, know
from actscope.engines.vllm.sidecar.flight import open_recording
from actscope.engines.vllm.sidecar.probe_registry import BankRegistry
from actscope.engines.vllm.sidecar_protocol import (
    Alive,
    Marked,
    RequestOptions,
    RunningRequests,
    SetBank,
    Settled,
    SidecarStart,
    Staged,
    Taken,
    WeightsChanged,
    ids_are_plain,
    receive,
    send,
)
from actscope.errors import ActscopeError, SettingsError
from actscope.probes import Bank, ProbedModel
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.flight.stats import FlightStats
from actscope.ring import discovery
from actscope.ring.counter_files import CounterFile, publish_always
from actscope.ring.segment import segment_path, unlink
from actscope.runtime.boot import boot_id
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start

log = logging.getLogger("actscope.vllm")

_DYING_S = 2.0
#: How long to wait for a recording that cannot be opened.
_IN_USE_S = 10.0
#: What became of marked requests is told to the next sidecar, which goes on from it.
_TOLD = ("whole_requests", "incomplete_requests", "lost_requests", "missed_ends")
#: Counters that a sidecar which is started again carries on from the file: what counts them begins at 0 with it.
_RESTARTED = (
    "drain_steps",
    "drain_rows",
    "recording_",
    *(f"flight_{name}" for name in meanings(FlightStats) if name not in _TOLD),
)


def main(fd: int) -> int:
    """Serve until the model's process closes the socket or dies. Return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # vLLM decides: we end when its socket closes
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _be_modest()
    connection = socket.socket(fileno=fd)
    start = receive(connection)
    if not isinstance(start, SidecarStart):
        return 1
    try:
        SidecarProcess(connection, start).run()
    except ActscopeError as error:
        log.error("%s", error)
        return 2
    return 0


def _be_modest() -> None:
    """Yield to the model: raise the nice value and drop the inherited CPU affinity."""
    with contextlib.suppress(OSError):
        os.nice(5)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


class SidecarProcess:
    """The parts of one sidecar, and the order in which they start and stop."""

    def __init__(self, connection: socket.socket, start: SidecarStart) -> None:
        self._connection, self._start = connection, start
        self._sending = threading.Lock()
        self._settings = msgspec.json.decode(start.settings, type=VllmSettings)
        self._known = know(start.facts, self._settings)
        self._drain: RowDrain | None = None
        self._counter_file: CounterFile | None = None
        self._no_recording = ""  # why there is none although there should be
        self._unrecorded = start.counts
        self._account: dict[str, int] = {}
        facts = start.facts
        bank = Bank(
            ProbedModel(self._known.name, self._known.revision, facts.d_model, facts.n_layers), self._settings.width
        )
        publish = partial(discovery.publish_table, start.card_id)
        self._registry = BankRegistry(bank, start, publish, self._hand_over)

    def run(self) -> None:
        """Serve until the socket closes, then stop every part. Removes what the model's process left if that has ended."""
        with self._sending:
            send(self._connection, Alive(os.getpid()))
        discovery.sweep()
        if self._start.state:
            self._registry.resume(self._start.state)
        else:
            self._registry.load(self._known.probes, self._settings.probe_site)
        self._registry.begin()
        flight = self._open_recording() if self._settings.record else None
        card = card_of(self._start, self._known)
        self._counter_file = CounterFile(
            card.id, "sidecar", lambda: self._counters(flight), part=card.part, log=log, carry=_RESTARTED
        )
        try:
            path = Path(card.control.removeprefix("unix:"))
            path.unlink(missing_ok=True)  # left by a sidecar that died; the path is unique to this engine
            with listening(path) as listener:
                asyncio.run(self._serve(listener, card, flight))
        finally:
            if self._drain is not None:
                self._drain.close()
            if flight is not None:
                flight.close()
            if not self._model_goes_on():
                self._clear_up(card)

    def _open_recording(self) -> FlightRecorder | None:
        """Open the recording and begin to fill it. If it cannot be opened, log the reason and answer clients with it."""
        try:
            drain = RowDrain(self._start, self._tell) if self._start.rows_ring else None
            flight = self._opened(drain)
        except (ActscopeError, OSError) as error:
            self._no_recording = str(error)
            log.error("nothing is recorded: %s", error)
            for options in self._start.wishes:
                self._lose(options)
            return None
        if drain is not None:
            drain.begin(flight)
            self._drain = drain
        return flight

    def _opened(self, drain: RowDrain | None) -> FlightRecorder:
        """Open the recording. Waits up to 10 seconds: the sidecar of a server that was just stopped may still be finishing it."""
        until = time.monotonic() + _IN_USE_S
        while True:
            try:
                return open_recording(self._start, self._settings, self._known, drain)
            except ActscopeError as error:
                if isinstance(error, SettingsError) or time.monotonic() > until:
                    raise
            time.sleep(0.5)  # another process has it; there is nothing to wait on

    def _name_of(self, request: str) -> str:
        return self._drain.recorded_name(request) if self._drain is not None else request

    def _lose(self, options: RequestOptions) -> None:
        """Count a request that was to be kept, where nothing is recorded."""
        if options.keep:
            self._unrecorded = msgspec.structs.replace(self._unrecorded, lost=self._unrecorded.lost + 1)
            self._tell(Settled([options.request], self._unrecorded))

    def _model_goes_on(self) -> bool:
        """Return whether the model's process lives and its ring exists.

        A closing session removes the ring before it closes the socket. Waits up to 2 seconds, since a killed process closes its
        sockets before it is gone.
        """
        start, until = self._start, time.monotonic() + _DYING_S
        while process_start(start.pid) == start.pid_start and segment_path(start.ring).exists():
            if time.monotonic() > until:
                return True
            time.sleep(0.05)  # see above: the process may still be exiting
        return False

    def _clear_up(self, card: discovery.EngineCard) -> None:
        """Remove the card and the row ring of a model's process that has ended without doing so."""
        discovery.withdraw_card(card)
        if self._start.rows_ring:
            unlink(self._start.rows_ring)

    def _tell(self, message: Marked | Settled | Taken) -> None:
        with self._sending, contextlib.suppress(OSError):  # the model's process has ended: no reader is left
            send(self._connection, message)

    def _counts(self) -> dict[str, object]:
        """Return the counts of all sidecars of this engine, and those of the model's process as it last told them.

        `missed_rows` were overwritten before they were read, `unsent_rows` never in shared memory. `kept_requests` are the marked
        requests that have ended: `whole`, `incomplete` and `lost`.
        """
        counts = self._drain.counts() if self._drain is not None else self._unrecorded
        return {
            "missed_rows": counts.missed_rows,
            "unsent_rows": counts.dropped_rows,
            "late_options": counts.late_options,
            "kept_requests": {"whole": counts.whole, "incomplete": counts.incomplete, "lost": counts.lost},
            "sidecar_restarts": self._start.restarts,
            "engine_counts": self._account,
        }

    def _control_routes(self, flight: FlightRecorder | None) -> list[Route]:
        return control_routes(
            self._registry,
            flight,
            also=self._counts,
            name_of=self._name_of,
            reason=self._no_recording,
            read_up=None if self._drain is None else self._drain.read_up,
        )

    def _counters(self, flight: FlightRecorder | None) -> list[Counter]:
        """Return the counters of this process. Without a recording they say what was lost because of that."""
        counts = self._unrecorded
        if flight is not None:
            return [*(counters_of(self._drain.stats()) if self._drain is not None else ()), *flight_counters(flight)]
        lost = FlightStats(
            whole_requests=counts.whole,
            incomplete_requests=counts.incomplete,
            lost_requests=counts.lost,
            missed_ends=counts.missed_ends,
        )
        before = DrainStats(
            missed_rows=counts.missed_rows, dropped_rows=counts.dropped_rows, late_options=counts.late_options
        )
        failed = RecordingCounts(failures=int(bool(self._no_recording)))
        return [one for what in (lost, before, failed) for one in counters_of(what) if one.value]

    def _hand_over(self, message: SetBank) -> None:
        with self._sending:
            send(self._connection, message)

    async def _serve(self, listener: socket.socket, card: discovery.EngineCard, flight: FlightRecorder | None) -> None:
        routes = [Route("/health", self._health), *self._control_routes(flight)]
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off"
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]  # uvicorn would stop on SIGTERM
        loop = asyncio.get_running_loop()

        def stop() -> None:
            server.should_exit = True

        threading.Thread(
            target=self._listen, args=(lambda: loop.call_soon_threadsafe(stop),), name="actscope-ear", daemon=True
        ).start()
        discovery.publish_card(card)
        log.info("ready: %d probes, card %s", len(msgspec.json.decode(self._registry.table())["probes"]), card.id)
        assert self._counter_file is not None
        counting = asyncio.create_task(publish_always(self._counter_file))
        try:
            await server.serve(sockets=[listener])
        finally:
            counting.cancel()

    def _listen(self, ended: Callable[[], object]) -> None:
        """Read messages until the model's process closes the socket."""
        try:
            while (message := receive(self._connection)) is not None:
                self._hear(message)
        except ActscopeError as error:
            log.error("%s", error)
        finally:
            ended()

    def _hear(self, message: object) -> None:
        """Handle one message. A message that fails is logged and must not end the sidecar."""
        try:
            if isinstance(message, Staged):
                self._registry.note_staged(message.generation)
            elif isinstance(message, WeightsChanged):
                self._start = msgspec.structs.replace(self._start, weights=message.version, refused=message.refused)
                self._registry.refuse(message.refused)
            elif isinstance(message, RequestOptions):
                self._drain.hear(message) if self._drain is not None else self._lose(message)
            elif isinstance(message, RunningRequests):
                self._account = message.account
                if self._drain is not None:
                    self._drain.hear_running(message)
        except Exception:
            log.exception("a message of the model's process could not be taken: %s", type(message).__name__)

    async def _health(self, http: Request) -> Response:
        """Answer with what is refused, and the counts of this engine (see `_counts`)."""
        facts = {"refused": self._start.refused, "weights": self._start.weights}
        return json_response({"status": "ok", **facts, "counts": self._counts()})


def card_of(start: SidecarStart, known: KnownModel) -> discovery.EngineCard:
    """Return the engine card of the model's process."""
    facts = start.facts
    return discovery.EngineCard(
        id=start.card_id,
        pid=start.pid,
        pid_start=start.pid_start,
        kind="vllm",
        model=facts.served,
        revision=known.revision,
        device=facts.device,
        dtype=facts.dtype,
        n_layers=facts.n_layers,
        d_model=facts.d_model,
        max_context=facts.max_context,
        has_chat_template=known.has_chat_template,
        special_ids=list(known.special_ids),
        tokenizer=known.tokenizer,
        ring=start.ring,
        endpoint="",
        started_ns=time.time_ns(),
        boot_id=boot_id(),
        control=f"unix:{runtime_dir()}/engine-{start.card_id}.sock",
        group=start.group,
        part=start.part,
        parts=start.parts,
        replica=start.replica,
        replicas=start.replicas,
        plain_ids=ids_are_plain(),
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
