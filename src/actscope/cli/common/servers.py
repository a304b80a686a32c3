"""An engine and a gateway in front of it, for the commands that run both."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from actscope.engines.builtin import NAME, probes_path
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.hf.spawn import EngineProcess, new_card_id
from actscope.errors import EngineError, MissingExtra, SettingsError
from actscope.gateway.settings import GatewaySettings
from actscope.probes import find_probes


def engine_settings(
    model: str,
    probes: list[Path] | None,
    *,
    device: str,
    dtype: str,
    threads: int,
    train_probes: bool,
    recording: dict[str, Any] | None = None,
) -> EngineSettings:
    """Settings of an engine with the probes that were named; else those that lie in ./probes/<model>, or came with the model.

    Where there are none and `train_probes` is set, the engine trains some on the built-in text and keeps them. `recording`
    is what `options.recording_settings` gives.
    """
    for directory in probes or ():
        _check_has_probes(directory)
    usual = (Path("probes") / model.strip("/"), *_own_probes(model))
    directories = probes or [d for d in usual if any(find_probes(d))]
    return EngineSettings(
        model=model,
        card_id=new_card_id(),
        probes=tuple(str(d.resolve()) for d in directories),
        train_probes=train_probes and not directories,
        device=device,
        dtype=dtype,
        threads=threads,
        **(recording or {}),
    )


def _check_has_probes(directory: Path) -> None:
    if not directory.is_dir():
        raise SettingsError(f"--probes {directory}: not a directory")
    if not any(find_probes(directory)):
        inside = ", ".join(sorted(d.name for d in directory.iterdir() if d.is_dir())) or "none"
        raise SettingsError(
            f"--probes {directory}: no probe files (*.safetensors, *.json) in it; its folders: {inside}"
        )


def _own_probes(model: str) -> list[Path]:
    return [probes_path()] if model == NAME else []


@contextmanager
def running_engine(settings: EngineSettings) -> Iterator[EngineProcess]:
    """An engine that is ready, behind a spinner; it is gone when the block ends."""
    console = Console(stderr=True)
    missing = next((m for m in ("torch", "transformers", "starlette", "uvicorn") if find_spec(m) is None), None)
    if missing is not None:  # the child would say it less clearly
        raise MissingExtra("hf", missing)
    with EngineProcess(settings) as engine, console.status(f"loading {settings.model} …") as status:
        engine.wait_ready(tick=lambda waited: status.update(f"loading {settings.model} … {waited:.0f} s"))
        status.stop()
        yield engine


def serve(engine: EngineSettings, gateway: GatewaySettings, *, browser: bool) -> None:
    """Engine and gateway until interrupted. The port is taken before the model is loaded.

    Raises EngineError when the engine ends first.
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
        server.run_here()
        if ended.is_set():
            code = process.wait()
            raise EngineError(f"the engine for {engine.model!r} has ended (exit code {code}); its last words are above")


@contextmanager
def gateway_in_background(settings: GatewaySettings) -> Iterator[GatewaySettings]:
    """The gateway on a thread of this process; yields its settings with the port that was taken."""
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
    """Say where to look, and open the page."""
    base = settings.link.split("/?", 1)[0]
    kept = f"  keeps    what you mark, in {record}   (actscope mark --last)\n" if record else ""
    print(
        f"\n  actscope is watching {model}\n\n"
        f"  page     {settings.link}\n"
        f"  API      {base}/v1   (OpenAI-compatible)\n"
        f"  api_key  {settings.token}\n{kept}\n"
        "  Ctrl-C stops it.\n",
        file=sys.stderr,
        flush=True,
    )
    if browser:
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(settings.link,), daemon=True).start()
