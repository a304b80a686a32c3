"""actscope metrics: what the machine was doing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from actscope.cli.common import options
from actscope.cli.common.output import show
from actscope.cli.common.settings_options import Given, with_settings
from actscope.cli.metrics.timelines import DEFAULT_URL, GatewayTimelines, GatewayToken, GatewayUrl
from actscope.errors import MetricsError
from actscope.extras import RECORDING, require
from actscope.runtime.cache import give_matplotlib_a_cache
from actscope.runtime.writable import check_can_write

if TYPE_CHECKING:
    from actscope.metrics.collect import Meter
    from actscope.metrics.lines import IoLine, SystemLine
    from actscope.metrics.settings import CollectSettings, OutputSettings
    from actscope.metrics.timeline.answer import AnsweredTimeline
    from actscope.metrics.writer import LineWriter

    Line = TypeVar("Line", bound=IoLine | SystemLine)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure block I/O, scheduling, page faults and pressure of the machine.",
)
Live = Annotated[bool, typer.Option("--live", help="Ask the gateway for the requests that it knows.")]
Requests = Annotated[
    list[str] | None, typer.Option("--request", metavar="ID", help="Request to take. Repeatable. By default all.")
]
TimelineFiles = Annotated[
    list[Path] | None,
    typer.Option("--timeline", metavar="FILE", help="What `actscope why REQUEST --json` printed. Repeatable."),
]
IO_FILE, SYSTEM_FILE = "tracepoints.jsonl", "system_metrics.jsonl"


@app.command()
@with_settings
def io(
    collect_flags: Annotated[Given, options.COLLECT],
    output_flags: Annotated[Given, options.OUTPUT],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")] = False,
) -> None:
    """Measure the block devices: a histogram of latencies, requests in flight, and what lies on what.

    Needs root for latencies. Without it, prints what /proc has, and what is missing. Lines go to tracepoints.jsonl too.

    Example: sudo actscope metrics io --interval 5 --output tracepoints.jsonl
    """
    from actscope.metrics.meters import IoMeter
    from actscope.metrics.text import io_text

    settings, output = options.COLLECT.make(collect_flags), options.OUTPUT.make(output_flags)
    meter = IoMeter(settings.source, cost=settings.cost)
    _collect(meter, meter.missing, settings, output, IO_FILE, None if as_json else io_text)


@app.command()
@with_settings
def system(
    collect_flags: Annotated[Given, options.COLLECT],
    wait_flags: Annotated[Given, options.WAITS],
    output_flags: Annotated[Given, options.OUTPUT],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")] = False,
) -> None:
    """Measure why processes were not running, their page faults, and the pressure on CPU, I/O and memory.

    Needs root for causes. Without it, prints what /proc has, and what is missing. Lines go to system_metrics.jsonl too.

    Example: sudo actscope metrics system --pid 4711 --json
    """
    from actscope.metrics.meters import SystemMeter
    from actscope.metrics.text import system_text

    settings, output = options.COLLECT.make(collect_flags), options.OUTPUT.make(output_flags)
    meter = SystemMeter(settings.source, options.WAITS.make(wait_flags), cost=settings.cost)
    _collect(meter, meter.missing, settings, output, SYSTEM_FILE, None if as_json else system_text)


@app.command()
def report(
    recording: Annotated[
        Path | None,
        typer.Argument(metavar="[RECORDING]", help="Directory of a recording to show beside the measurements."),
    ] = None,
    measurements: Annotated[
        list[Path] | None,
        typer.Option(
            "--metrics",
            metavar="FILE",
            help="File of measurements. Repeatable. By default tracepoints.jsonl and system_metrics.jsonl of this directory.",
        ),
    ] = None,
    live: Live = False,
    requests: Requests = None,
    timelines: TimelineFiles = None,
    url: GatewayUrl = DEFAULT_URL,
    access: GatewayToken = "",
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The report.")] = Path("report.html"),
) -> None:
    """Write one HTML file with tables and plots of measurements, of tokens, and of a recording on the same axis of time.

    It opens without a server and without a network, in light or dark. Files of older tools with these names are read too.

    Example: actscope metrics report run.acts --metrics tracepoints.jsonl --output report.html
    """
    require("analyze", *(RECORDING if recording is not None else ()), "matplotlib")
    check_can_write(output, "--output", MetricsError)
    give_matplotlib_a_cache()
    from actscope.cli.common.recordings import open_recording
    from actscope.metrics.reader import read_measurements
    from actscope.metrics.report.page import default_files, report_html

    paths = default_files(Path()) if measurements is None else measurements
    if recording is None and not (paths or live or timelines):
        raise MetricsError(
            "nothing to report: expected a recording, --live, or files of `actscope metrics io` and `system` (--metrics FILE); "
            "tracepoints.jsonl and system_metrics.jsonl are not in this directory"
        )
    opened = None if recording is None else open_recording(recording)
    found = _read_timelines(timelines, requests)
    found += GatewayTimelines(url, access).each(requests or ()) if live else ()
    text = report_html(opened, [read_measurements(path) for path in paths], found)
    _publish(output, text.encode())
    tokens = f", {len(found)} requests" if found else ""
    show(f"{output}: {len(paths)} files of measurements{tokens}{', and ' + str(recording) if recording else ''}")


@app.command()
def trace(
    recording: Annotated[
        Path | None, typer.Argument(metavar="[RECORDING]", help="Directory of a recording whose requests are traced.")
    ] = None,
    live: Live = False,
    requests: Requests = None,
    timelines: TimelineFiles = None,
    measurements: Annotated[
        list[Path] | None,
        typer.Option("--metrics", metavar="FILE", help="File of `actscope metrics io` or `system`. Repeatable."),
    ] = None,
    profiles: Annotated[
        list[Path] | None,
        typer.Option("--profile", metavar="FILE", help="Trace of torch's profiler (export_chrome_trace). Repeatable."),
    ] = None,
    url: GatewayUrl = DEFAULT_URL,
    access: GatewayToken = "",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The trace.")] = Path("trace.pftrace"),
) -> None:
    """Write a trace for ui.perfetto.dev: requests, passes, tokens, scores and what the kernel saw, joined by arrows.

    Everything is on CLOCK_MONOTONIC of one boot. Traces of torch's profiler are put on it by the wall clock.

    Example: actscope metrics trace --live --metrics system_metrics.jsonl --output trace.pftrace
    """
    if recording is None and not (live or timelines or measurements):
        raise MetricsError(
            "nothing to trace: expected a recording, --live (requests of the gateway), --timeline FILE or --metrics FILE"
        )
    require("analyze", *(RECORDING if recording is not None else ()), "perfetto")
    from actscope.cli.common.recordings import open_recording
    from actscope.metrics.reader import read_measurements
    from actscope.metrics.trace.assembled import TraceSources, make_trace
    from actscope.metrics.trace.profiler import read_profile

    gateway = GatewayTimelines(url, access) if live else None
    found = _read_timelines(timelines, requests)
    answered = list(gateway.each(requests or ())) if gateway else []
    scores = {one.request: gateway.scores(one.request) for one in answered} if gateway else {}
    made = make_trace(
        TraceSources(
            [*found, *answered],
            scores,
            None if recording is None else open_recording(recording),
            frozenset(requests or ()),
            [read_measurements(path) for path in measurements or ()],
            [read_profile(path) for path in profiles or ()],
        )
    )
    _publish(output, made.data)
    for one in made.left_out:
        show(f"actscope: {one}", err=True)
    show(f"{output}: {made.n_events:,} events, {made.n_flows:,} arrows; open it at https://ui.perfetto.dev")


@app.command()
def dashboard() -> None:
    """Print a Grafana dashboard for the metrics of gateway and feed, which Grafana imports as JSON.

    Example: actscope metrics dashboard > actscope.json
    """
    from actscope.serving.telemetry.dashboard import read_dashboard

    show(read_dashboard().rstrip("\n"))


def _read_timelines(paths: list[Path] | None, requests: list[str] | None) -> list[AnsweredTimeline]:
    from actscope.metrics.timeline.answer import read_timelines

    return [one for path in paths or () for one in read_timelines(path) if not requests or one.request in requests]


def _publish(output: Path, data: bytes) -> None:
    from actscope.runtime.publish import publish_file

    try:
        publish_file(output, data, durable=False)
    except OSError as error:
        raise MetricsError(f"--output {output}: cannot be written: {error.strerror}: choose another place") from error


def _collect(
    meter: Meter[Line],
    missing: list[str],
    settings: CollectSettings,
    output: OutputSettings,
    default: str,
    text: Callable[[Line], str] | None,
) -> None:
    """Run a meter to its end, and say what it lacks and where its lines went. `text` formats a line; None is JSON."""
    from actscope.metrics.collect import Collection, stopped_by_signals
    from actscope.metrics.reader import as_json

    path = output.path(default)
    try:
        writer = None if path is None else _writer(path, output)
    except BaseException:
        meter.close()
        raise
    for one in missing:
        show(f"actscope: missing: {one}", err=True)
    run = Collection(meter, settings, writer, lambda line: show(text(line) if text else as_json(line)))
    with stopped_by_signals(run.stop):
        lines = run.run()
    if writer is not None:
        dropped = writer.counts().dropped
        lost = f"; {dropped} were dropped, as the disk did not keep up" if dropped else ""
        show(f"actscope: {lines} lines, appended to {path}{lost}", err=True)


def _writer(path: Path, output: OutputSettings) -> LineWriter:
    from actscope.metrics.writer import LineWriter

    return LineWriter(
        path, flush_every=output.flush_every, fsync=output.fsync, rotate_bytes=output.rotate_bytes, keep=output.keep
    )
