"""The engine's process: `python -m actscope.engines.hf '<EngineSettings as JSON>'`."""

from __future__ import annotations

import asyncio
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
import torch
import uvicorn
from starlette.applications import Starlette
from transformers.utils import logging as transformers_logging

from actscope.counters import Counter, counters_of
from actscope.engines.flights import flight_counters, open_flight
from actscope.engines.hf.default_probes import default_probes
from actscope.engines.hf.engine import Engine, EngineOptions
from actscope.engines.hf.loading import LoadedModel, cache_dir, load
from actscope.engines.hf.server import Mailboxes, create_app
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.http import listening
from actscope.errors import ActscopeError
from actscope.frames import TeeSink
from actscope.probes import Probe, load_probes, log_left_out
from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.recorder import FlightRecorder
from actscope.ring import discovery
from actscope.ring.counter_files import CounterFile, publish_always
from actscope.ring.host import RingWriter
from actscope.ring.layout import RingSpec
from actscope.runtime.boot import boot_id
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start
from actscope.sites import select

log = logging.getLogger("actscope.engine")

BEAT_S = 5.0


def main(argument: str) -> int:
    """Serve until asked to stop, and return the exit code. An ActscopeError is printed to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("actscope.engine").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings by a handler of its own
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = msgspec.json.decode(argument, type=EngineSettings)
    parent = Parent(settings.owned)
    try:
        discovery.sweep()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        loaded = load(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
        )
        probes = [probe for directory in settings.probes for probe in load_probes(Path(directory), log_left_out)]
        if settings.train_probes and not probes:
            probes = default_probes(loaded)
        asyncio.run(_serve(settings, loaded, probes, parent))
    except ActscopeError as error:
        print(f"actscope: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(settings: EngineSettings, loaded: LoadedModel, probes: list[Probe], parent: Parent) -> None:
    flight = open_recording(settings, loaded) if settings.record else None
    ring = RingWriter.create(_ring_spec(settings))
    card = _card(settings, loaded, ring.name)
    mailboxes = Mailboxes()
    options = EngineOptions(
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        max_step_tokens=settings.max_step_tokens,
        probe_width=settings.probe_width,
    )
    try:
        engine = Engine(
            loaded,
            sink=TeeSink((ring, flight)) if flight else ring,
            deliver=mailboxes.deliver,
            probes=probes,
            on_table=partial(_publish_table, card.id, flight),
            options=options,
        ).start()
        try:
            if flight is not None:
                engine.keep_rows(select(settings.record_sites, loaded.n_layers)).result()
            with listening(Path(card.endpoint.removeprefix("unix:"))) as listener:
                app = create_app(engine, mailboxes, flight)
                read = partial(_counters, engine, ring, flight)
                counter_file = CounterFile(card.id, "engine", read, part=card.part, log=log)
                await _serve_http(parent, app, engine, listener, card, ring, counter_file)
        finally:
            engine.close()
    finally:
        discovery.withdraw_card(card)
        ring.close()
        if flight is not None:
            flight.close()


def open_recording(settings: EngineSettings, loaded: LoadedModel) -> FlightRecorder:
    """Open the flight recorder that the settings describe.

    Raises SettingsError, SiteError, CodecError or RecordingError if that is not possible.
    """
    model = {
        "name": loaded.name,
        "revision": loaded.revision,
        "path": loaded.path,
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "n_layers": loaded.n_layers,
        "d_model": loaded.d_model,
        "max_context": loaded.max_context,
    }
    return open_flight(
        Path(settings.record),
        [site.name for site in select(settings.record_sites, loaded.n_layers)],
        codec=settings.record_codec,
        model=model,
        by="serve",
        triggers=settings.triggers,
        sample=settings.sample,
        options=FlightOptions(settings.flight_bytes, settings.flight_seconds, settings.flight_dir),
        texts=lambda ids: [str(loaded.tokenizer.decode([i])) for i in ids],
        special_ids=loaded.tokenizer.all_special_ids,
    )


def _publish_table(card_id: str, flight: FlightRecorder | None, generation: int, table: bytes) -> None:
    discovery.publish_table(card_id, table, generation)
    if flight is not None:
        flight.learn(table)


def _ring_spec(settings: EngineSettings) -> RingSpec:
    """Return the ring's sizes. Steps and spans are scaled to the rows, as a decoding step may have few rows."""
    steps = max(4096, settings.ring_rows // 8)
    return RingSpec(
        settings.ring_rows, settings.probe_width, step_capacity=steps, span_capacity=max(steps * 2, settings.ring_rows)
    )


async def _serve_http(
    parent: Parent,
    app: Starlette,
    engine: Engine,
    listener: socket.socket,
    card: discovery.EngineCard,
    ring: RingWriter,
    counter_file: CounterFile,
) -> None:
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    parent.tell(asyncio.get_running_loop(), stop)
    discovery.publish_card(card)
    beating = asyncio.create_task(_beat(ring, engine, stop))
    counting = asyncio.create_task(publish_always(counter_file))
    try:
        await server.serve(sockets=[listener])
    finally:
        beating.cancel()
        counting.cancel()


def _counters(engine: Engine, ring: RingWriter, flight: FlightRecorder | None) -> list[Counter]:
    return [*counters_of(engine.stats), *counters_of(ring.stats()), *flight_counters(flight)]


async def _beat(ring: RingWriter, engine: Engine, stop: Callable[[], None]) -> None:
    """Send heartbeats for readers in other containers, where our pid means nothing; stop when the model's thread ends."""
    while engine.alive:
        ring.beat()
        await asyncio.sleep(BEAT_S)
    log.error("the model's thread has ended; the process exits")
    stop()


class Parent:
    """Watch of the parent process. When it closes our standard input, this process exits, even while it loads the model."""

    def __init__(self, owned: bool) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], None] | None = None
        if owned:
            threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        """Call `stop` on the loop from now on, for an orderly shutdown, instead of exiting immediately."""
        self._loop, self._stop = loop, stop

    def _watch(self) -> None:
        while os.read(0, 4096):
            continue
        if self._loop is None or self._stop is None:
            os._exit(0)  # nothing has been published yet
        self._loop.call_soon_threadsafe(self._stop)


def _card(settings: EngineSettings, loaded: LoadedModel, ring: str) -> discovery.EngineCard:
    return discovery.EngineCard(
        id=settings.card_id,
        pid=os.getpid(),
        pid_start=process_start(os.getpid()) or 0,
        kind="hf",
        model=loaded.name,
        revision=loaded.revision,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        n_layers=loaded.n_layers,
        d_model=loaded.d_model,
        max_context=loaded.max_context,
        has_chat_template=loaded.tokenizer.chat_template is not None,
        special_ids=sorted(loaded.tokenizer.all_special_ids),
        tokenizer=str(tokenizer_directory(loaded)),
        ring=ring,
        endpoint=f"unix:{runtime_dir()}/engine-{settings.card_id}.sock",
        started_ns=time.time_ns(),
        boot_id=boot_id(),
    )


def tokenizer_directory(loaded: LoadedModel) -> Path:
    """Return a directory with the model's tokenizer.json, which is written to the cache if the model has none."""
    local = Path(loaded.path)
    if (local / "tokenizer.json").is_file():
        return local
    cache = cache_dir("tokenizers", loaded, reuse=False)  # written at each start
    cache.mkdir(parents=True, exist_ok=True)
    loaded.tokenizer.backend_tokenizer.save(str(cache / "tokenizer.json"))
    return cache


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which owns the terminal, decides
    sys.exit(main(sys.argv[1]))
