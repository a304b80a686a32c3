"""Plots as PNG files, each in a light and a dark version: `norms.png` and `norms.dark.png`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from actscope.analysis.dependence import Node
from actscope.analysis.graph import Graph
from actscope.analysis.site import SiteStats
from actscope.analysis.tokens import depth
from actscope.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class _Theme:
    """Colours of the light or the dark version. `ramp` is a part of a colour map that contrasts with the background."""

    suffix: str
    background: str
    ink: str
    faint: str
    accent: str
    second: str
    ramp: tuple[str, float, float]


_THEMES = (
    _Theme("", "#ffffff", "#1c1e21", "#d5d8dc", "#0b63a5", "#c2500a", ("viridis", 0.0, 0.82)),
    _Theme(".dark", "#15181c", "#e6e8eb", "#3a4048", "#6cb6ff", "#ff9f5a", ("viridis", 0.25, 1.0)),
)
_SITES = "site (a bare number: resid_post of that block)"
Draw = Callable[["Figure", "Axes", _Theme], None]


def plot_sites(sites: Sequence[SiteStats], folder: Path) -> list[Path]:
    """Draw all plots of the sites and return their paths. Raises MissingExtra if matplotlib is not installed."""
    wide = 4.8 + 0.32 * len(sites)
    tall = 1.4 + 0.3 * len(sites)
    plans: list[tuple[str, tuple[float, float], Draw]] = [
        ("norms", (min(16, wide), 4.2), lambda figure, axes, theme: _norms(axes, theme, sites)),
        ("drift", (9, 6), lambda figure, axes, theme: _drift(figure, theme, sites)),
        ("outliers", (9, min(24, max(2.6, tall))), lambda figure, axes, theme: _outliers(axes, theme, sites)),
        ("bytes_per_token", (9, min(24, max(2.6, tall))), lambda figure, axes, theme: _bytes(axes, theme, sites)),
    ]
    if any(stats.spectrum is not None for stats in sites):
        plans.append(("spectrum", (9, 4.6), lambda figure, axes, theme: _spectrum(figure, theme, sites)))
    return [path for plan in plans for path in _draw(folder, *plan)]


def plot_graph(graph: Graph, folder: Path) -> list[Path]:
    """Draw the feature graph, sites from left to right and edges as curves, and return the paths.

    Raises MissingExtra if matplotlib is not installed.
    """
    tall = min(20.0, max(4.0, 0.34 * max(_column_sizes(graph).values(), default=1) + 1.6))
    return _draw(folder, "graph", (11, tall), lambda figure, axes, theme: _graph(axes, theme, graph))


def _draw(folder: Path, name: str, size: tuple[float, float], draw: Draw) -> list[Path]:
    paths = []
    for theme in _THEMES:
        with _figure(theme, size) as (figure, axes):
            draw(figure, axes, theme)
            paths.append(folder / f"{name}{theme.suffix}.png")
            figure.savefig(paths[-1], dpi=130)
    return paths


@contextmanager
def _figure(theme: _Theme, size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {
        "figure.facecolor": theme.background, "axes.facecolor": theme.background, "savefig.facecolor": theme.background,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.edgecolor": theme.faint, "xtick.color": theme.ink,
        "ytick.color": theme.ink, "grid.color": theme.faint, "grid.linewidth": 0.6, "axes.spines.top": False,
        "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("analyze", "matplotlib") from error
    return matplotlib


def _short(site: str) -> str:
    return site.removeprefix("layers.").replace(".resid_post", "")


def _ramp(theme: _Theme, n: int) -> list[np.ndarray]:
    name, low, high = theme.ramp
    return list(_matplotlib().colormaps[name](np.linspace(low, high, max(2, n)))[:n])


def _norms(axes: Axes, theme: _Theme, sites: Sequence[SiteStats]) -> None:
    x = np.arange(len(sites))

    def of(q: float) -> list[float]:
        return [stats.norms.quantiles[q] for stats in sites]

    axes.fill_between(x, of(0.01), of(0.99), color=theme.accent, alpha=0.14, linewidth=0, label="1 % to 99 %")
    axes.fill_between(x, of(0.25), of(0.75), color=theme.accent, alpha=0.30, linewidth=0, label="25 % to 75 %")
    axes.plot(x, [stats.norms.mean for stats in sites], color=theme.accent, marker="o", markersize=4, label="mean")
    axes.plot(x, [stats.norms.max for stats in sites], ".", color=theme.second, markersize=6, label="largest row")
    axes.set_yscale("log")
    every = max(1, len(sites) // 24)
    axes.set_xticks(x[::every], [_short(stats.site) for stats in sites][::every], rotation=45 if len(sites) > 8 else 0)
    axes.set_xlabel(_SITES)
    axes.set_ylabel("L2 norm of a row")
    axes.set_title("Norms by site, in the order of the model")
    axes.grid(axis="y")
    axes.legend(ncols=4, loc="upper left", fontsize=8)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.18)


def _spectrum(figure: Figure, theme: _Theme, sites: Sequence[SiteStats]) -> None:
    figure.clear()
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    known = [stats for stats in sites if stats.spectrum is not None]
    for stats, colour in zip(known, _ramp(theme, len(known)), strict=True):
        assert stats.spectrum is not None
        shares = stats.spectrum.shares
        live = shares > 1e-12
        left.plot(np.flatnonzero(live) + 1, shares[live], color=colour, linewidth=1.2)
    _label_ends(left, known, _ramp(theme, len(known)), loc="lower left")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("direction, by falling variance")
    left.set_ylabel("share of the variance")
    left.set_title("Spectrum of the covariance")
    left.grid(which="major")
    y = np.arange(len(known))
    ranks = [stats.spectrum.effective_rank for stats in known if stats.spectrum]
    ratios = [stats.spectrum.participation_ratio for stats in known if stats.spectrum]
    right.hlines(y, ratios, ranks, color=theme.faint, linewidth=2)
    right.plot(ranks, y, "o", color=theme.accent, markersize=5, label="effective rank")
    right.plot(ratios, y, "D", color=theme.second, markersize=4, label="participation ratio")
    right.set_yticks(y, [_short(stats.site) for stats in known])
    right.invert_yaxis()
    right.set_xlim(left=0)
    right.set_xlabel(f"directions, of {max(stats.width for stats in known)}")
    right.set_title("How many directions are used")
    right.grid(axis="x")
    right.set_ylabel(_SITES, fontsize=8)
    right.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _label_ends(
    axes: Axes,
    sites: Sequence[SiteStats],
    colours: Sequence[np.ndarray],
    *,
    loc: Literal["lower left", "upper left"],
    bbox_to_anchor: tuple[float, float] | None = None,
) -> None:
    """Add a legend that names the first, middle and last site; the others follow the colour ramp."""
    lines = _matplotlib().lines
    ends = sorted({0, len(sites) // 2, len(sites) - 1})
    handles = [lines.Line2D([], [], color=colours[i], label=_short(sites[i].site)) for i in ends]
    axes.legend(handles=handles, fontsize=8, title="site", title_fontsize=8, loc=loc, bbox_to_anchor=bbox_to_anchor)


def _drift(figure: Figure, theme: _Theme, sites: Sequence[SiteStats]) -> None:
    figure.clear()
    top, bottom = figure.subplots(2, 1, sharex=True)
    colours = _ramp(theme, len(sites))
    longest = max((stats.drift for stats in sites), key=len)
    names = [str(part.first) if part.first == part.last else f"{part.first}-{part.last}" for part in longest]
    at = {part.first: number for number, part in enumerate(longest)}
    for stats, colour in zip(sites, colours, strict=True):
        x = [at[part.first] for part in stats.drift if part.first in at]
        kept = [part for part in stats.drift if part.first in at]
        top.plot(x, [part.mean_norm for part in kept], color=colour, marker="o", markersize=3, linewidth=1.2)
        bottom.plot(x, [part.mean_cosine for part in kept], color=colour, marker="o", markersize=3, linewidth=1.2)
    top.set_yscale("log")
    top.set_ylabel("mean L2 norm")
    top.set_title("Drift along the text: position 0 is often exceptional")
    bottom.set_ylabel("mean cosine to the\nmean of all rows")
    bottom.set_xlabel("position")
    bottom.set_xticks(range(len(names)), names)
    _label_ends(top, sites, colours, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axes in (top, bottom):
        axes.grid()


def _outliers(axes: Axes, theme: _Theme, sites: Sequence[SiteStats]) -> None:
    """Plot how far each dimension's mean or log std is from the median, per site, with the outliers' numbers."""
    from actscope.analysis.outliers import robust_scores

    for y, stats in enumerate(sites):
        std = stats.moments.std
        of_std = np.zeros(len(std))
        of_std[std > 0] = robust_scores(np.log(std[std > 0]))
        reach = np.maximum(np.abs(robust_scores(stats.moments.mean)), np.abs(of_std))
        out = {outlier.dimension for outlier in stats.outliers}
        plain = np.array([j for j in range(len(reach)) if j not in out], int)
        axes.plot(reach[plain], np.full(len(plain), y), "|", color=theme.accent, alpha=0.35, markersize=7)
        axes.plot(reach[sorted(out)], np.full(len(out), y), "o", color=theme.second, markersize=4)
        if stats.outliers:
            names = ", ".join(str(outlier.dimension) for outlier in stats.outliers[:4])
            more = f" + {len(out) - 4}" if len(out) > 4 else ""
            note = f"{names}{more}"
            axes.annotate(
                note, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=theme.second
            )
    axes.axvline(6, color=theme.ink, linewidth=0.8, linestyle=":")
    axes.set_xscale("symlog", linthresh=6)
    axes.set_xlim(left=0)
    high = axes.get_xlim()[1]
    ticks = [tick for tick in (0, 2, 4, 6, 10, 20, 50, 100, 1000, 10_000) if tick <= high]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(sites)), [_short(stats.site) for stats in sites])
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlabel(
        "distance of a dimension's mean or log std from the median, in robust standard deviations (linear up to 6, then log)"
    )
    axes.set_title("Outlier dimensions (beyond 6; numbers at the right)")


def _bytes(axes: Axes, theme: _Theme, sites: Sequence[SiteStats]) -> None:
    y = np.arange(len(sites))
    axes.barh(y, [stats.stored_per_token for stats in sites], color=theme.accent, height=0.62, label="stored")
    marks = (("source dtype", "source_per_token", theme.second, "-"), ("as float32", "fp32_per_token", theme.ink, ":"))
    for label, name, colour, style in marks:
        values = [getattr(stats, name) for stats in sites]
        axes.vlines(values, y - 0.42, y + 0.42, color=colour, linestyle=style, linewidth=1.6, label=label)
    for number, stats in enumerate(sites):
        axes.text(
            stats.stored_per_token,
            number,
            f" {stats.stored_per_token:.0f}",
            va="center",
            fontsize=8,
            color=theme.ink,
        )
    axes.set_yticks(y, [_short(stats.site) for stats in sites])
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlim(0, 1.08 * max(max(stats.fp32_per_token, stats.stored_per_token) for stats in sites))
    axes.set_xlabel("bytes per token")
    axes.set_title(f"Bytes per token: {sum(stats.stored_per_token for stats in sites):.0f} for all sites")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.legend(ncols=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.62 / max(1, len(sites)) - 0.06))


def _linked(graph: Graph) -> list[Node]:
    linked = {edge.source for edge in graph.edges} | {edge.target for edge in graph.edges}
    return [node for node in graph.nodes if node.id in linked]


def _column_sizes(graph: Graph) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in _linked(graph):
        sizes[node.site] = sizes.get(node.site, 0) + 1
    return sizes


def _graph(axes: Axes, theme: _Theme, graph: Graph) -> None:
    """Plot the graph, one column per site. Solid edges have lag 0; dashed ones lead from an earlier token to a later one."""
    from matplotlib import patches

    columns: dict[str, list[Node]] = {}
    for node in _linked(graph):
        columns.setdefault(node.site, []).append(node)
    places: dict[str, tuple[float, float]] = {}
    for x, site in enumerate(sorted(columns, key=depth)):
        nodes = sorted(columns[site], key=lambda node: -node.rate)
        axes.text(x, -0.75, _short(site), ha="center", va="bottom", fontsize=10, fontweight="bold")
        for y, node in enumerate(nodes):
            places[node.id] = (x, y)
            axes.annotate(
                node.feature, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8, zorder=4,
                bbox={"facecolor": theme.background, "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            )  # fmt: skip
            axes.plot(x, y, "o", color=theme.ink, markersize=3 + 7 * np.sqrt(node.rate), zorder=3)
    strongest = max(edge.te for edge in graph.edges)
    for edge in sorted(graph.edges, key=lambda edge: edge.te):
        begin, end = places[edge.source], places[edge.target]
        share = float(np.sqrt(edge.te / strongest)) if strongest else 0.0
        within = 0.45 if end[1] > begin[1] else -0.45  # bends away from the labels
        bend = within if begin[0] == end[0] else 0.12
        arrow = patches.FancyArrowPatch(
            begin, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=7, shrinkA=5, shrinkB=5,
            color=theme.accent if edge.phi >= 0 else theme.second, alpha=0.25 + 0.65 * share, linewidth=0.6 + 2.2 * share,
            linestyle="-" if edge.lag == 0 else (0, (4, 2)), zorder=2,
        )  # fmt: skip
        axes.add_patch(arrow)
    rows = max(len(nodes) for nodes in columns.values())
    axes.set_xlim(-0.45, len(columns) - 0.55 + 0.25)
    axes.set_ylim(rows - 0.3, -1.2)
    axes.axis("off")
    axes.set_title(
        f"{len(graph.edges)} edges of {graph.tested} pairs on {graph.tokens} tokens, false-discovery rate {graph.options.fdr:g}\n"
        "Solid: same token, earlier to later site. Dashed: earlier to later token. Blue: phi >= 0; orange: phi < 0.\n"
        "Edges are statistical dependence, not causation: confirm with an intervention.",
        fontsize=8,
    )
