"""Plots of the tokens of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actscope.metrics.report.charts import DrawnPlot, PageTheme, drawn, time_axis
from actscope.metrics.report.tokens import TokenSeries
from actscope.metrics.timeline.sentence import UNEXPLAINED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OTHERS = "other parts"


def _main_parts(tokens: TokenSeries, most: int) -> list[tuple[str, np.ndarray]]:
    """Return the parts that took longest in all, in the order of a token's way, then the sum of the others."""
    named = [name for name in tokens.parts if name != UNEXPLAINED]
    longest = sorted(named, key=lambda name: -int(tokens.parts[name].sum()))[:most]
    found = [(name, tokens.parts[name]) for name in named if name in longest]
    rest = [tokens.parts[name] for name in named if name not in longest]
    return [*found, (_OTHERS, np.sum(rest, axis=0))] if rest else found


def _colours(tokens: TokenSeries, theme: PageTheme) -> dict[str, str]:
    """Return the colour of each main part, which is the same in both plots, and of the sum of the others."""
    main = [name for name, _ in _main_parts(tokens, len(theme.lines)) if name != _OTHERS]
    return dict(zip(main, theme.lines, strict=False)) | {_OTHERS: theme.faint}


def parts_plot(tokens: TokenSeries) -> DrawnPlot:
    """Return the mean parts of fast and of slow tokens, as bars that are as long as the mean gap, in percent of it."""
    groups = tokens.groups()

    def draw(figure: Figure, theme: PageTheme) -> None:
        axes = figure.add_subplot()
        parts, colours = _main_parts(tokens, len(theme.lines)), _colours(tokens, theme)
        if UNEXPLAINED in tokens.parts:
            parts.append((UNEXPLAINED, tokens.parts[UNEXPLAINED]))
        left = np.zeros(len(groups))
        for name, ns in parts:
            share = np.array([100 * ns[own].sum() / tokens.gaps[own].sum() for _, own in groups])
            hatch = (
                {"color": colours[name]}
                if name in colours
                else {"facecolor": "none", "edgecolor": theme.ink, "hatch": "//"}
            )
            axes.barh(range(len(groups)), share, left=left, label=name, height=0.62, **hatch)  # type: ignore[arg-type]
            left += share
        names = [f"{name}\nmean {tokens.gaps[own].mean() / 1e6:.3g} ms" for name, own in groups]
        axes.set_yticks(range(len(groups)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the gap")
        axes.grid(visible=False, axis="y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5)

    says = "Parts of the gaps between tokens, from the fastest to the slowest."
    return drawn("Where the time went", says, (9.5, 1.1 + 0.6 * len(groups)), draw)


def gaps_plot(tokens: TokenSeries) -> DrawnPlot:
    """Return each token at the time at which it came, by the length of its gap, coloured by its longest part."""

    def draw(figure: Figure, theme: PageTheme) -> None:
        axes = figure.add_subplot()
        start = float(tokens.ends.min())
        names = list(tokens.parts)
        main = np.argmax(np.stack([tokens.parts[name] for name in names]), axis=0)
        colours = _colours(tokens, theme)
        for i, name in enumerate(names):
            at = main == i
            if at.any():
                colour = colours.get(name, theme.ink)
                axes.scatter(
                    tokens.ends[at] - start,
                    tokens.gaps[at] / 1e6,
                    s=7,
                    color=colour,
                    label=name,
                    linewidths=0,
                    rasterized=True,
                )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("gap, ms")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=7, markerscale=2)
        time_axis(axes, start)

    says = "Each token when it came, by the length of the gap before it; the colour is its longest part."
    return drawn("Gaps between tokens", says, (9.5, 3.2), draw)
