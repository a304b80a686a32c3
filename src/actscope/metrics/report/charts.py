"""Plots as SVG, each once for light and once for dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from actscope.metrics.report.series import DeviceSeries, SystemSeries
from actscope.metrics.report.timeline import RecordingSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class PageTheme:
    """Colours of the light or the dark version. `ramp` is the part of a colour map that stands out from the background."""

    background: str
    ink: str
    faint: str
    lines: tuple[str, ...]
    ramp: tuple[str, float, float]


LIGHT = PageTheme(
    "#ffffff",
    "#1c1e21",
    "#d5d8dc",
    ("#0b63a5", "#c2500a", "#2b7a3d", "#7a3fa0", "#8a6d00", "#b0303f"),
    ("YlGnBu", 0.2, 1.0),
)
DARK = PageTheme(
    "#15181c",
    "#e6e8eb",
    "#3a4048",
    ("#6cb6ff", "#ff9f5a", "#7ad08b", "#cf9bff", "#e3c65b", "#ff8a94"),
    ("viridis", 0.2, 1.0),
)
#: Most columns of a heat map; more intervals are added up.
_MOST_COLUMNS = 600
_LINE = 1.3


@dataclass(frozen=True, slots=True)
class DrawnPlot:
    """A plot: its title, what it shows in words, and its two versions as SVG."""

    title: str
    says: str
    light: bytes
    dark: bytes


Draw = Callable[["Figure", PageTheme], None]


def drawn(title: str, says: str, size: tuple[float, float], draw: Draw) -> DrawnPlot:
    """Return a plot in both themes. `draw` fills an empty figure of `size` inches."""
    return DrawnPlot(title, says, _svg(size, draw, LIGHT), _svg(size, draw, DARK))


def _svg(size: tuple[float, float], draw: Draw, theme: PageTheme) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({
        "figure.facecolor": theme.background, "axes.facecolor": theme.background, "savefig.facecolor": theme.background,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.edgecolor": theme.faint, "xtick.color": theme.ink,
        "ytick.color": theme.ink, "grid.color": theme.faint, "grid.linewidth": 0.6, "axes.spines.top": False,
        "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
        "svg.hashsalt": "actscope", "axes.grid": True, "axes.axisbelow": True, "legend.fontsize": 8,
    }):  # fmt: skip
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, theme)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def latency_plot(device: DeviceSeries) -> DrawnPlot | None:
    """Return the heat map of a device's latencies over time; None if there are no latencies."""
    if not device.counts.any():
        return None

    def draw(figure: Figure, theme: PageTheme) -> None:
        axes = figure.add_subplot()
        ends, counts = _thinned(device.ends, device.counts)
        used = np.flatnonzero(counts.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        shown = np.ma.masked_equal(counts[:, low:high].T, 0)
        edges = np.concatenate([[2 * ends[0] - ends[1] if len(ends) > 1 else ends[0] - device.seconds[0]], ends])
        picture = axes.pcolormesh(
            edges - edges[0], np.arange(low, high + 1), shown, cmap=_ramp(theme), norm="log", rasterized=True
        )
        axes.set_yticks(range(low, high + 1), [_us(2.0**slot) for slot in range(low, high + 1)])
        axes.set_ylabel("latency")
        time_axis(axes, edges[0])
        figure.colorbar(picture, ax=axes, label="requests", pad=0.01)

    name = _named(device)
    says = f"Latencies of {name}: half of the requests at most {_us(device.p50_us)}, 99 % at most {_us(device.p99_us)}."
    return drawn(f"{name}: latency", says, (9.5, 3.4), draw)


def depth_plot(devices: Sequence[DeviceSeries]) -> DrawnPlot:
    """Return the requests in flight of all devices over time."""

    def draw(figure: Figure, theme: PageTheme) -> None:
        axes = figure.add_subplot()
        for device, colour in zip(devices, theme.lines, strict=False):
            start = device.ends[0]
            axes.plot(
                device.ends - start,
                device.in_flight,
                color=colour,
                lw=_LINE,
                label=_named(device),
                marker=_dot(device.ends),
            )
            if not np.isnan(device.mean_in_flight).all():
                axes.plot(device.ends - start, device.mean_in_flight, color=colour, lw=_LINE, ls=":")
        axes.set_ylabel("requests")
        _from_zero(axes, *(one.in_flight for one in devices), *(one.mean_in_flight for one in devices))
        axes.legend(ncols=3)
        time_axis(axes, devices[0].ends[0])

    most = max((float(np.nanmax(one.in_flight, initial=0.0)) for one in devices), default=0.0)
    says = f"Requests in flight at the end of each interval, at most {most:g}; dotted: the mean of the interval."
    return drawn("In-flight depth", says, (9.5, 2.8), draw)


def lines_plot(title: str, says: str, unit: str, ends: np.ndarray, values: Mapping[str, np.ndarray]) -> DrawnPlot:
    """Return a plot of named values over time."""

    def draw(figure: Figure, theme: PageTheme) -> None:
        axes = figure.add_subplot()
        for (name, shown), colour in zip(values.items(), theme.lines, strict=False):
            axes.plot(ends - ends[0], shown, color=colour, lw=_LINE, label=name, marker=_dot(ends))
        axes.set_ylabel(unit)
        _from_zero(axes, *values.values())
        axes.legend(ncols=3)
        time_axis(axes, ends[0])

    return drawn(title, says, (9.5, 2.8), draw)


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """One curve of the timeline. `at` has the ends of bins if it has one entry more than `values`, else the times."""

    label: str
    colour: int
    at: np.ndarray
    values: np.ndarray


def timeline_plot(
    recording: RecordingSeries, devices: Sequence[DeviceSeries], system: SystemSeries | None
) -> DrawnPlot:
    """Return the recording and the machine on one axis of time: tokens, bytes, queue, drops, latency, depth, pressure."""
    start, stop = float(recording.edges[0]), float(recording.edges[-1])
    panels = list(_panels(recording, devices, system))

    def draw(figure: Figure, theme: PageTheme) -> None:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(grid, panels, strict=True):
            colour = theme.lines[panel.colour]
            if len(panel.at) > len(panel.values):
                axes.stairs(panel.values, panel.at - start, color=colour, fill=True, alpha=0.75)
            else:
                axes.plot(panel.at - start, panel.values, color=colour, lw=_LINE, marker=_dot(panel.at))
            axes.set_ylabel(panel.label, rotation=0, ha="right", va="center")
            _from_zero(axes, panel.values)
            axes.set_xlim(0, stop - start)
        figure.align_ylabels(list(grid))
        time_axis(grid[-1], start)

    says = "The recording and the machine on one axis of time."
    return drawn("Timeline", says, (9.5, 0.6 + 1.05 * len(panels)), draw)


def _panels(
    recording: RecordingSeries, devices: Sequence[DeviceSeries], system: SystemSeries | None
) -> Iterator[_Panel]:
    yield _Panel("tokens/s", 0, recording.edges, recording.tokens)
    if len(recording.written):
        yield _Panel("MB/s written", 1, recording.edges, recording.written / 1e6)
        yield _Panel("MB queued", 2, recording.queue[0], recording.queue[1] / 1e6)
    yield _Panel("rows\ndropped/s", 5, recording.edges, recording.dropped)
    for device in devices[:2]:
        yield _Panel(f"{device.name}\nin flight", 3, device.ends, _depth(device))
        if device.counts.any():
            yield _Panel(f"{device.name}\np99 ms", 4, device.ends, _p99_ms(device))
    if system is not None and "io" in system.pressure:
        yield _Panel("I/O pressure %", 5, system.ends, system.pressure["io"])


def _dot(values: np.ndarray) -> str:
    """Return the marker of a curve: few points are marked, since a single one draws no line."""
    return "o" if len(values) < 3 else ""


def _depth(device: DeviceSeries) -> np.ndarray:
    return device.in_flight if np.isnan(device.mean_in_flight).all() else device.mean_in_flight


def _p99_ms(device: DeviceSeries) -> np.ndarray:
    """Return the upper end of the slot of each interval's 99th percentile, in ms; NaN without requests."""
    total = device.counts.sum(axis=1)
    slot = np.argmax(device.counts.cumsum(axis=1) >= 0.99 * total[:, None], axis=1)
    return np.where(total > 0, 2.0 ** (slot + 1) / 1000, np.nan)


def _ramp(theme: PageTheme) -> Colormap:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    name, low, high = theme.ramp
    return ListedColormap(colormaps[name](np.linspace(low, high, 256)))


def _from_zero(axes: Axes, *values: np.ndarray) -> None:
    """Let an axis begin at 0, and end above it also when all values are 0."""
    most = max((float(np.nanmax(one, initial=0.0)) for one in values), default=0.0)
    axes.set_ylim(0, most * 1.05 if most > 0 else 1)


def _thinned(ends: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    step = -(-len(ends) // _MOST_COLUMNS)
    starts = np.arange(0, len(ends), step)
    return ends[np.minimum(starts + step - 1, len(ends) - 1)], np.add.reduceat(counts, starts, axis=0)


def _named(device: DeviceSeries) -> str:
    return f"{device.name} ({device.label})" if device.label else device.name


def time_axis(axes: Axes, start: float) -> None:
    """Label an axis of seconds after a wall time."""
    began = datetime.fromtimestamp(start, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    axes.set_xlabel(f"seconds after {began} UTC")


def _us(us: float) -> str:
    return f"{us / 1e6:g} s" if us >= 1e6 else f"{us / 1e3:.3g} ms" if us >= 1000 else f"{us:g} µs"
