"""Run an engine and the gateway in front of it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console

from actscope.cli.common.interrupts import resumable
from actscope.cli.common.options import ENGINE
from actscope.cli.common.output import show_banner
from actscope.cli.common.settings_options import Given
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.hf.spawn import EngineProcess, new_card_id
from actscope.engines.local.names import shipped_probes
from actscope.errors import EngineError, SettingsError
from actscope.extras import require
from actscope.gateway.settings import GatewaySettings
from actscope.probes import find_probes
from actscope.runtime.printable import one_line
from actscope.runtime.writable import check_can_create


def engine_settings(model: str, given: Given) -> EngineSettings:
    """Return the settings of an engine from the given ones, checked as far as that is possible without the model.

    Probes that are not given are those in ./probes/MODEL, else those shipped with the model. The engine trains probes only if
    there are none.

    Raises:
        SettingsError: A value is out of range, a directory has no probes, or a recording is needed and not given.
        CodecError: The codec is unknown.
        MissingExtra: A package that trains probes, or writes a recording, is not installed.
    """
    for directory in given.get("probes", ()):
        _check_has_probes(Path(directory))
    usual = (Path("probes") / model.strip("/"), shipped_probes(model))
    probes = given.get("probes") or [directory for directory in usual if directory and any(find_probes(directory))]
    places = {name: str(Path(given[name]).resolve()) for name in ("record", "flight_dir") if given.get(name)}
    settings = ENGINE.make({**given, **places}, model=model, card_id=new_card_id(), probes=_resolved(probes))
    _check_recording(settings)
    trains = settings.train_probes and not probes
    if trains:
        require("hf", "sklearn")
    return replace(settings, train_probes=trains)


def _resolved(directories: Iterable[str | Path]) -> tuple[str, ...]:
    return tuple(str(Path(directory).resolve()) for directory in directories)


def _check_recording(settings: EngineSettings) -> None:
    if not settings.record:
        if settings.triggers or settings.sample or settings.flight_dir:
            raise SettingsError("--trigger, --sample and --keep-on-disk need a recording: add --record DIR")
        return
    require("record")
    from actscope.codecs import encoder
    from actscope.recording.flight.history import FlightOptions
    from actscope.recording.flight.triggers import parse_rule

    check_can_create(Path(settings.record), "--record", SettingsError)
    if settings.flight_dir:
        check_can_create(Path(settings.flight_dir), "--keep-on-disk", SettingsError)
    encoder(settings.record_codec)
    for text in (*settings.triggers, f"sample {settings.sample}"):
        parse_rule(text)
    FlightOptions(settings.flight_bytes, settings.flight_seconds, settings.flight_dir)


def _check_has_probes(directory: Path) -> None:
    if not directory.is_dir():
        raise SettingsError(f"--probes {directory}: not a directory")
    if not any(find_probes(directory)):
        inside = ", ".join(sorted(d.name for d in directory.iterdir() if d.is_dir())) or "none"
        raise SettingsError(
            f"--probes {directory}: no probe files (*.safetensors, *.json) in it; its folders: {inside}"
        )


@contextmanager
def running_engine(settings: EngineSettings) -> Iterator[EngineProcess]:
    """Start an engine and yield it when it serves requests. A spinner is shown meanwhile; the engine ends with the block.

    Raises:
        EngineError: The engine ended at start, or was not ready in time.
    """
    console = Console(stderr=True)
    with EngineProcess(settings) as engine, console.status(f"loading {settings.model} …") as status:
        engine.wait_ready(tick=lambda waited: status.update(f"loading {settings.model} … {waited:.0f} s"))
        status.stop()
        yield engine


def serve(engine: EngineSettings, gateway: GatewaySettings, *, browser: bool) -> None:
    """Run an engine and a gateway until interrupted. Binds the port before the model is loaded.

    Raises:
        EngineError: The engine ended first.
        SettingsError: The port cannot be bound.
    """
    from actscope.gateway.server import open_server

    server = open_server(gateway)
    server.on_started = lambda taken: announce(taken, engine.model, browser=browser, record=engine.record)
    ended = threading.Event()

    def watch_engine(process: EngineProcess) -> None:
        process.wait()
        if not server.should_exit:
            ended.set()
            server.should_exit = True

    with running_engine(engine) as process:
        threading.Thread(target=watch_engine, args=(process,), daemon=True).start()
        with resumable(_stopped(engine)):
            server.run_here()
        if ended.is_set():
            code = process.wait()
            raise EngineError(f"the engine for {engine.model!r} has ended (exit code {code}); see its messages above")


def _stopped(engine: EngineSettings) -> str:
    """Say what a server that was stopped leaves."""
    if engine.record:
        return (
            f"stopped: marked requests are kept in {engine.record} (actscope info {engine.record}); others have expired"
        )
    return "stopped: no request is kept, because none was recorded; `actscope serve --record DIR` keeps those that are marked"


@contextmanager
def gateway_in_background(settings: GatewaySettings) -> Iterator[GatewaySettings]:
    """Run the gateway on a thread of this process. Yields its settings with the port that was bound."""
    from actscope.gateway.server import open_server

    server = open_server(settings)
    started = threading.Event()
    server.on_started = lambda taken: started.set()
    thread = threading.Thread(target=server.run_here, name="actscope-gateway")
    thread.start()
    started.wait()
    try:
        yield server.settings
    finally:
        server.should_exit = True
        thread.join()


def announce(settings: GatewaySettings, model: str, *, browser: bool, record: str = "") -> None:
    """Print the page's link, the API's address and the token on standard error. With `browser`, open the page too."""
    base = settings.link.split("/?", 1)[0]
    reach = f"  open to  {settings.reach}\n" if settings.reach else ""
    kept = f"  records  marked requests, to {one_line(record)}   (actscope mark --last)\n" if record else ""
    show_banner(
        f"\n  actscope is watching {one_line(model)}\n\n"
        f"  page     {settings.link}\n"
        f"  API      {base}/v1   (OpenAI-compatible)\n"
        f"  api_key  {settings.token}\n{reach}{kept}\n"
        "  Ctrl-C stops it.\n",
    )
    if browser:
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(settings.link,), daemon=True).start()
