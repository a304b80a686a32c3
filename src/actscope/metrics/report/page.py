"""The report: one HTML file without scripts and without links to other files, light or dark as the reader's system is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from actscope._version import __version__
from actscope.metrics.lines import IoLine, SystemLine
from actscope.metrics.reader import MeasurementFile
from actscope.metrics.report.charts import DrawnPlot, depth_plot, latency_plot, lines_plot, timeline_plot
from actscope.metrics.report.series import DeviceSeries, SystemSeries, device_series, system_series
from actscope.metrics.report.timeline import RecordingSeries, clock_of, recording_series
from actscope.metrics.report.token_charts import gaps_plot, parts_plot
from actscope.metrics.report.tokens import TokenSeries, token_series
from actscope.metrics.timeline.answer import AnsweredTimeline
from actscope.metrics.timeline.parts import PARTS
from actscope.metrics.timeline.sentence import milliseconds
from actscope.recording.reading.recording import Recording
from actscope.runtime.printable import one_line

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1c1e21; --soft: #5b6470; --line: #d5d8dc; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --ink: #e6e8eb; --soft: #a3acb8; --line: #3a4048; } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } p, figcaption { color: var(--soft); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } figure { margin: 1rem 0; }
img { width: 100%; height: auto; display: block; } .wide { overflow-x: auto; }
"""

Row = tuple[str, ...]


def report_html(
    recording: Recording | None, files: Sequence[MeasurementFile], timelines: Sequence[AnsweredTimeline] = ()
) -> str:
    """Return the report of a recording, of files of measurements and of timelines, any of which may be missing.

    Raises:
        RecordingDamaged: The recording's records cannot be read.
        MissingExtra: matplotlib is not installed.
    """
    clock = clock_of(recording)
    io = sorted((line for file in files for line in file.io), key=clock)
    system = sorted((line for file in files for line in file.system), key=clock)
    devices = device_series(io, clock, _under(recording, io))
    waits = system_series(system, clock) if system else None
    course = None if recording is None else recording_series(recording)
    tokens = token_series(timelines)
    parts = [
        *_head(course, files, io, system),
        *(_recording_part(course, devices, waits) if course is not None else ()),
        *(_token_part(tokens) if tokens is not None else ()),
        *(_device_part(devices) if devices else ()),
        *(_system_part(waits) if waits is not None else ()),
    ]
    title = "actscope: what the machine was doing"
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{title}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style></head><body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _under(recording: Recording | None, io: Sequence[IoLine]) -> frozenset[str]:
    """Return the devices under a recording, as the lines say."""
    if recording is None:
        return frozenset()
    path = recording.path.resolve()
    return frozenset(
        name for line in io for one in line.recordings if Path(one.path).resolve() == path for name in one.devices
    )


def _head(
    course: RecordingSeries | None, files: Sequence[MeasurementFile], io: Sequence[IoLine], system: Sequence[SystemLine]
) -> Iterator[str]:
    yield "<h1>What the machine was doing</h1>"
    rows = [(str(file.path), f"{len(file.io)}", f"{len(file.system)}", f"{len(file.skipped)}") for file in files]
    if rows:
        yield _table(("file", "lines of block I/O", "lines of processes", "lines that cannot be read"), rows)
    every: list[IoLine | SystemLine] = [*io, *system]
    sources = sorted({line.source for line in every})
    if sources:
        words = {
            "bpf": "programs in the kernel",
            "perf": "tracepoints read through perf",
            "proc": "/proc alone",
            "unknown": "another tool",
        }
        yield f"<p>Measured by {escape(' and '.join(words[one] for one in sources))}.</p>"
    lost = sum(line.lost_events for line in every)
    if lost:
        yield f"<p>{lost:,} events could not be counted.</p>"
    missing = dict.fromkeys(one for line in every for one in line.missing)
    if missing:
        yield f"<p>Missing: {escape('; '.join(missing))}</p>"
    if course is not None and every:
        ends = [line.timestamp for line in every]
        if max(ends) < course.edges[0] or min(ends) > course.edges[-1]:
            yield "<p><strong>None of the measurements was taken while the recording was written.</strong></p>"
    yield f"<p>Written by actscope {escape(__version__)}.</p>"


def _recording_part(
    course: RecordingSeries, devices: Sequence[DeviceSeries], system: SystemSeries | None
) -> Iterator[str]:
    yield f"<h2>Recording {escape(course.path)}</h2>"
    yield _table(("", ""), list(course.facts.items()))
    yield _figure(timeline_plot(course, devices, system))


def _token_part(tokens: TokenSeries) -> Iterator[str]:
    yield "<h2>Tokens</h2>"
    yield (
        f"<p>{len(tokens.gaps):,} tokens of {tokens.requests:,} requests; the median gap is {milliseconds(tokens.median_ns)}."
        + (f" {tokens.together:,} more came together with the one before." if tokens.together else "")
        + " The gap of a first token begins at its request. The parts of each gap sum to it.</p>"
    )
    whole = max(int(tokens.gaps.sum()), 1)
    rows = []
    for name, ns in tokens.parts.items():
        middle, high, most = (
            milliseconds(int(one)) if one else "0" for one in (*np.quantile(ns, (0.5, 0.99)), ns.max())
        )
        rows.append(
            (name, PARTS.get(name, "a time stamp is missing"), f"{100 * ns.sum() / whole:.1f} %", middle, high, most)
        )
    yield _table(("part", "", "of all time", "p50 of a gap", "p99", "longest"), rows, numbers=(2, 3, 4, 5))
    yield _figure(parts_plot(tokens))
    yield _figure(gaps_plot(tokens))
    yield "<p>The slowest tokens, and why they came when they came.</p>"
    slow = [
        (one.request, f"{one.index}", one_line(one.text), milliseconds(one.gap_ns), one.why) for one in tokens.slowest
    ]
    yield _table(("request", "token", "text", "gap", "why"), slow, numbers=(1, 3))


def _device_part(devices: Sequence[DeviceSeries]) -> Iterator[str]:
    yield "<h2>Block devices</h2>"
    yield _table(
        ("device", "", "requests", "per second", "p50 at most", "p99 at most", "most in flight"),
        [
            (
                one.name, one.label, f"{one.requests.sum():,}", f"{one.requests.sum() / one.seconds.sum():.1f}",
                _time(one.p50_us), _time(one.p99_us), _most(one.in_flight),
            )
            for one in devices
        ],
    )  # fmt: skip
    yield from (_figure(plot) for plot in map(latency_plot, devices) if plot is not None)
    yield _figure(depth_plot(devices))


def _system_part(system: SystemSeries) -> Iterator[str]:
    if system.pressure:
        yield "<h2>Pressure</h2>"
        says = "Share of the last 10 seconds in which some task waited for the resource (PSI, avg10)."
        yield _figure(lines_plot("Pressure", says, "%", system.ends, system.pressure))
    yield "<h2>Processes</h2>"
    if system.waits:
        causes = list(dict.fromkeys(cause for one in system.waits.values() for cause in one))
        yield "<p>Seconds off the CPU by cause, of the processes that were held up longest.</p>"
        rows = [(name, *(f"{one.get(cause, 0.0):.3f}" for cause in causes)) for name, one in system.waits.items()]
        yield _table(("process", *causes), rows)
    if system.held:
        says = "Seconds that the threads of these processes were held up, in each second."
        yield _figure(lines_plot("Off the CPU", says, "s/s", system.ends, system.held))
    if system.fault_totals:
        yield _table(("process", "page faults"), [(name, f"{n:,.0f}") for name, n in system.fault_totals.items()])
        says = "User page faults in a second."
        yield _figure(lines_plot("Page faults", says, "1/s", system.ends, system.faults))


def _figure(plot: DrawnPlot) -> str:
    light, dark = (f"data:image/svg+xml;base64,{base64.b64encode(one).decode()}" for one in (plot.light, plot.dark))
    return (
        f"<figure><figcaption><strong>{escape(plot.title)}.</strong> {escape(plot.says)}</figcaption><picture>"
        f"<source media='(prefers-color-scheme: dark)' srcset='{dark}'>"
        f"<img src='{light}' alt='{escape(plot.title, quote=True)}: {escape(plot.says, quote=True)}'></picture></figure>"
    )


def _table(heads: Row, rows: Iterable[Row], numbers: Sequence[int] | None = None) -> str:
    """Return a table. `numbers` are the columns that are right-aligned; by default all but the first, if there are over two."""
    right = (range(1, len(heads)) if len(heads) > 2 else ()) if numbers is None else numbers

    def cell(kind: str, i: int, text: str) -> str:
        return f"<{kind}{' class=n' if i in right else ''}>{escape(text)}</{kind}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>\n" for row in rows)
    return f"<div class=wide><table>{f'<tr>{head}</tr>' if any(heads) else ''}\n{body}</table></div>"


def _time(us: int) -> str:
    return "not measured" if not us else f"{us / 1000:.1f} ms" if us >= 1000 else f"{us} µs"


def _most(values: np.ndarray) -> str:
    return "not measured" if np.isnan(values).all() else f"{np.nanmax(values):g}"


def default_files(directory: Path) -> list[Path]:
    """Return the files that the collectors write by default, if they are in a directory, with those that they were renamed to."""
    from actscope.metrics.reader import follow_rotation

    names = (directory / "tracepoints.jsonl", directory / "system_metrics.jsonl")
    return [path for name in names for path in follow_rotation(name) if path.exists()]
