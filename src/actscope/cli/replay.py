"""actscope replay: play a recording on the scope page as if it ran live."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show, show_banner
from actscope.cli.common.recordings import Directory, open_recording
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import ProbeError, SettingsError
from actscope.extras import RECORDING, SERVER, require
from actscope.runtime.printable import one_line

if TYPE_CHECKING:
    from actscope.engines.replay.engine import ReplayEngine
    from actscope.engines.replay.facts import RecordedModel
    from actscope.engines.replay.player import PlayerStats
    from actscope.gateway.server import GatewayServer
    from actscope.gateway.settings import GatewaySettings
    from actscope.probes import Probe

#: Maximum of requests and of positions that the gateway remembers. The oldest requests are evicted.
_MOST_REQUESTS = 4096
_MOST_POSITIONS = 4_000_000
_A_YEAR_S = 365 * 86_400.0


@with_settings
def replay(
    directory: Directory,
    flags: Annotated[Given, options.REPLAY],
    gateway_flags: Annotated[Given, options.GATEWAY.only("port", "token")],
    probes: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Directory of probe files. Repeatable. By default ./probes/MODEL, else those shipped with the model.",
        ),
    ] = None,
    browser: options.Browser = True,
) -> None:
    """Play a recording on the scope page as if it ran live, scored with any probes whose sites were recorded.

    The probes may be newer than the recording. While it plays, `actscope probe add` and `actscope probe remove` change them.

    Example: actscope replay run.acts --probes my-probes --request r000001 --speed 4
    """
    require("gateway,record", *SERVER, *RECORDING)
    from actscope.engines.replay.engine import ReplayEngine
    from actscope.engines.replay.facts import recorded_model
    from actscope.gateway.server import open_server

    settings = options.REPLAY.make(flags)
    recording = open_recording(directory)
    model = recorded_model(recording)
    chosen = _probes(probes, model, any_model=settings.any_model)
    with ReplayEngine(recording, settings, probes=chosen, on_end=_say_end) as engine:
        server = open_server(_gateway_settings(engine, gateway_flags))
        show = browser and options.can_show_a_browser()

        def begin(taken: GatewaySettings) -> None:
            _announce(taken, engine, directory, browser=show)
            engine.start(lambda: steps_taken(server))

        server.on_started = begin
        with resumable(f"stopped: {directory} is as it was; repeat the command to play it again"):
            server.run_here()


def _probes(directories: list[Path] | None, model: RecordedModel, *, any_model: bool) -> list[Probe]:
    """Load the probes that can be computed from the recording. The others are reported on standard error.

    Args:
        directories: Directories of probe files. None: the usual ones, of which a probe for another model is only reported.
        model: The recorded model.
        any_model: Accept probes that were made for another model or revision.

    Raises:
        ProbeError: None of the probes in `directories` can be computed, or one of them is for another model.
        SettingsError: A path is not a directory.
    """
    from actscope.engines.replay.fitting import sort_out
    from actscope.probes import load_probes

    found = directories or _usual_probes(model.name)
    loaded = [probe for directory in found for probe in load_probes(_checked(directory), _left_out)]
    fitting, unfit = sort_out(loaded, model, any_model=any_model, lenient=not directories)
    reasons = "".join(f"\n  {one.why}" for one in unfit[:3])
    reasons += f"\n  and {len(unfit) - 3} more" if len(unfit) > 3 else ""
    if directories and not fitting:
        where = ", ".join(map(str, directories))
        raise ProbeError(
            f"--probes {where}: none of them can be computed from this recording:{reasons or ' no probes'}"
        )
    if unfit:
        _say(f"{len(unfit)} of {len(loaded)} probes cannot be computed from this recording:{reasons}")
    return fitting


def _left_out(error: ProbeError) -> None:
    _say(one_line(f"a probe is left out: {error}"))


def _checked(directory: Path) -> Path:
    if not directory.is_dir():
        raise SettingsError(f"--probes {directory}: not a directory")
    return directory


def _usual_probes(model: str) -> list[Path]:
    """Return ./probes/MODEL if it has probes, else those shipped with the model, else none."""
    from actscope.engines.local.names import shipped_probes
    from actscope.probes import find_probes

    usual = [Path("probes") / model.strip("/"), shipped_probes(model)]
    return [directory for directory in usual if directory is not None and any(find_probes(directory))][:1]


def _gateway_settings(engine: ReplayEngine, flags: Given) -> GatewaySettings:
    """Return settings of a gateway that remembers the whole recording while it runs, within fixed bounds."""
    settings = options.GATEWAY.make(flags, upstream=engine.card.id)
    return replace(
        settings,
        log_requests=min(_MOST_REQUESTS, max(settings.log_requests, len(engine.plan.requests))),
        log_positions=min(_MOST_POSITIONS, max(settings.log_positions, engine.plan.n_rows)),
        log_seconds=_A_YEAR_S,
    )


def steps_taken(server: GatewayServer) -> int | None:
    """Return the number of steps that the gateway has read from the ring or missed. None while it is not attached."""
    engine = server.app.state.gateway.upstream.engine
    if engine is None or engine.matcher is None:
        return None
    counts = engine.matcher.counts()
    return int(counts.steps + counts.missed_steps)


def _announce(settings: GatewaySettings, engine: ReplayEngine, directory: Path, *, browser: bool) -> None:
    """Print the link, the address and the token on standard error. With `browser`, open the page at the first request."""
    from actscope.engines.replay.plan import shown_name

    shown = engine.plan.requests
    link = f"{settings.link}&request={quote(shown_name(shown[0].id), safe='')}"
    names = ", ".join(one.id for one in shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
    what = one_line(f"{directory}: {engine.model.name}")
    show_banner(
        f"\n  actscope is replaying {what}, {engine.plan.n_rows:,} tokens, {_pace(engine)}\n\n"
        f"  page      {link}\n"
        f"  API       {settings.link.split('/?', 1)[0]}/v1/actscope/requests\n"
        f"  api_key   {settings.token}\n"
        f"  requests  {one_line(names)}\n"
        f"  probes    {one_line(_list(probe.id for _, probe in engine.bank.items()))}\n\n"
        "  Choose another request from the list `All requests` on the page. Ctrl-C stops it.\n"
    )
    if browser:
        import threading
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()


def _list(names: Any) -> str:
    return ", ".join(names) or "none: add some with actscope probe add FILE"


def _pace(engine: ReplayEngine) -> str:
    speed = engine.settings.speed
    if not speed:
        return "as fast as possible"
    return f"{engine.plan.duration_ns / 1e9 / speed:,.1f} s at {speed:g} times the recorded pace"


def _say_end(stats: PlayerStats) -> None:
    rows = f"{stats.rows:,} tokens in {stats.seconds:,.1f} s"
    _say(f"  the recording has ended ({rows}); the page shows it until you press Ctrl-C")


def _say(message: str) -> None:
    show(message, err=True)
