"""actscope analyze: statistics of the rows of a recording."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.cli.common.recordings import Directory, open_recording
from actscope.cli.common.settings_options import Given, with_settings
from actscope.cli.export import Sites
from actscope.extras import RECORDING, require
from actscope.runtime.cache import give_matplotlib_a_cache

if TYPE_CHECKING:
    from actscope.analysis import AnalysisReport
    from actscope.analysis.features import FeatureReport
    from actscope.analysis.graph import Graph


@with_settings
def analyze(
    path: Directory,
    flags: Annotated[Given, options.ANALYSIS],
    site_flags: Annotated[Given, options.SITE],
    graph_flags: Annotated[Given, options.GRAPH],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder for report.json, arrays, graph and plots.")
    ] = None,
    sites: Sites = None,
    as_json: options.Json = False,
) -> None:
    """Measure the rows of a recording: norms, moments, outlier dimensions, effective rank, drift along the text, bytes per token.

    With --features, also which features fire on which tokens. With --graph, also how they depend on each other (which is not
    causation).

    Example: actscope analyze run.acts --to report --features probes/my-model --graph
    """
    plots = ("matplotlib",) if to is not None and flags.get("plots", True) else ()
    graph = ("scipy", "networkx") if flags.get("graph") else ()
    require("analyze" if plots or graph else "record", *RECORDING, *plots, *graph)
    give_matplotlib_a_cache()
    from actscope.analysis import analyze as run
    from actscope.cli.common.progress import ProgressBar
    from actscope.recording.export import choose_sites

    recording = open_recording(path)
    wanted = options.ANALYSIS.make(
        flags,
        sites=choose_sites(recording, sites or ()),
        site=options.SITE.make(site_flags),
        graph_options=options.GRAPH.make(graph_flags),
    )
    with resumable("interrupted: nothing was written; repeat the command to start over"), ProgressBar() as bars:
        report = run(recording, wanted, to, bars.update)
    show(json.dumps(report.as_dict()) if as_json else _text(report))


def _text(report: AnalysisReport) -> str:
    lines = [*_site_lines(report)]
    for found in report.features:
        lines += ["", *_feature_lines(found)]
    if report.graph is not None:
        lines += ["", *_graph_lines(report.graph)]
    if report.files:
        lines += ["", f"{len(report.files)} files written; the whole report is {report.files[-1]}"]
    return "\n".join(lines)


def _site_lines(report: AnalysisReport) -> list[str]:
    width = max(len(stats.site) for stats in report.sites)
    lines = [
        f"{report.path}: {report.rows} rows; each token counts once",
        "",
        f"{'site':<{width}} {'tokens':>7} {'width':>5} {'norm':>7} {'p99':>7} {'largest':>7} {'rank':>5} {'far':>3} {'huge':>5} "
        f"{'bytes':>5}",
    ]
    for stats in report.sites:
        rank = f"{stats.spectrum.effective_rank:.1f}" if stats.spectrum else "-"
        norms = f"{stats.norms.mean:>7.4g} {stats.norms.quantiles[0.99]:>7.4g} {stats.norms.max:>7.4g}"
        lines.append(
            f"{stats.site:<{width}} {stats.rows:>7} {stats.width:>5} {norms} {rank:>5} {len(stats.outliers):>3} "
            f"{stats.massive.count:>5} {stats.stored_per_token:>5.0f}"
        )
    return [
        *lines,
        "",
        "norm: mean L2 norm of a row. rank: effective rank, at most the width.",
        "far: outlier dimensions. huge: massive activations. bytes: stored for a token.",
    ]


def _feature_lines(found: FeatureReport) -> list[str]:
    lines = [
        f"{found.name} at {found.site}: {found.n_features - found.dead} of {found.n_features} fire, "
        f"{found.mean_fired:.2f} on a token"
    ]
    for one in found.stats[:10]:
        tokens = "  ".join(dict.fromkeys(_shown(token.text, token.token_id) for token in one.top))
        line = f"  {one.id:<16} {one.rate:>7.2%}  mean {one.mean:<7.4g} max {one.max:<7.4g} {one.label or tokens}"
        lines.append(line if len(line) <= 79 else f"{line[:78]}…")
    return lines


def _shown(text: str | None, token_id: int) -> str:
    return repr(text) if text is not None else str(token_id)


def _graph_lines(graph: Graph) -> list[str]:
    from actscope.analysis.graph import NOTE

    head = f"{len(graph.edges)} edges of {graph.tested} pairs on {graph.tokens} tokens. {NOTE}"
    lines = textwrap.wrap(head, 79)
    for edge in graph.edges[:15]:
        lines += [
            f"  {edge.source} -> {edge.target}",
            f"      lag {edge.lag}  te {edge.te:.4f} bits  phi {edge.phi:+.2f}  together {edge.together}  q {edge.q:.2g}",
        ]
    more = len(graph.edges) - 15
    return [*lines, f"  and {more} more (--json, or --to, has all)"] if more > 0 else lines
