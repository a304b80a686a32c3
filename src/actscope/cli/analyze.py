"""actscope analyze: what the rows of a recording are like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actscope.cli.export import Sites

if TYPE_CHECKING:
    from actscope.analysis import AnalysisReport


def analyze(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A recording.")],
    to: Annotated[Path | None, typer.Option("--to", help="A folder for report.json, arrays, graph and plots.")] = None,
    sites: Sites = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            help="An autoencoder (file, or SAELens folder) or a folder of probes; SITE=PATH; may be repeated.",
        ),
    ] = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="Which features fire together, and before which: needs --features.")
    ] = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="With --to: draw PNGs.")] = True,
    spectrum_rows: Annotated[int, typer.Option(help="Rows for the spectrum; 0 leaves it out.")] = 50_000,
    nodes: Annotated[int, typer.Option(help="With --graph: at most so many features of each set.")] = 64,
    fdr: Annotated[float, typer.Option(help="With --graph: share of false edges that is accepted.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the rows of a recording: norms, moments, outlier dimensions, effective rank, drift along the text, bytes per token;
    with --features what fires on which tokens; with --graph how features depend on each other (which is not causation).

    Example: actscope analyze run.acts --to report --features probes/my-model --graph
    """
    from actscope.analysis import AnalysisOptions, GraphOptions, SiteOptions
    from actscope.analysis import analyze as run
    from actscope.cli.progress import Progress
    from actscope.recording.export import choose_sites
    from actscope.recording.reader import Recording

    recording = Recording.open(path)
    options = AnalysisOptions(
        sites=choose_sites(recording, sites or ()),
        features=tuple(features or ()),
        graph=graph,
        plots=plots,
        site=SiteOptions(spectrum_rows=spectrum_rows),
        graph_options=GraphOptions(nodes=nodes, fdr=fdr),
    )
    with Progress() as bars:
        report = run(recording, options, to, bars.update)
    typer.echo(json.dumps(report.as_dict()) if as_json else _text(report))


def _text(report: AnalysisReport) -> str:
    width = max(len(stats.site) for stats in report.sites)
    lines = [
        f"{report.path}: {report.rows} tokens",
        "",
        f"{'site':<{width}} {'rows':>8} {'norm mean':>10} {'p99':>9} {'largest':>9} {'eff. rank':>10} {'of':>6} {'outliers':>9} "
        f"{'massive':>8} {'bytes/token':>12}",
    ]
    for stats in report.sites:
        rank = f"{stats.spectrum.effective_rank:.1f}" if stats.spectrum else "-"
        lines.append(
            f"{stats.site:<{width}} {stats.rows:>8} {stats.norms.mean:>10.4g} {stats.norms.quantiles[0.99]:>9.4g} "
            f"{stats.norms.max:>9.4g} {rank:>10} {stats.width:>6} {len(stats.outliers):>9} {stats.massive.count:>8} "
            f"{stats.stored_per_token:>12.0f}"
        )
    for found in report.features:
        lines += ["", f"{found.name} at {found.site}: {found.n_features - found.dead} of {found.n_features} fire, "
                  f"{found.mean_fired:.2f} on a token"]  # fmt: skip
        for one in found.stats[:10]:
            tokens = "  ".join(f"{t.text if t.text is not None else t.token_id!r}".strip() or "␣" for t in one.top[:6])
            lines.append(f"  {one.id:<20} {one.rate:>7.2%}  mean {one.mean:>9.4g}  max {one.max:>9.4g}  {tokens}")
    if report.graph is not None:
        from actscope.analysis.graph import NOTE

        lines += [
            "",
            f"{len(report.graph.edges)} edges of {report.graph.tested} pairs on {report.graph.tokens} tokens. {NOTE}",
        ]
        for edge in report.graph.edges[:15]:
            lines.append(
                f"  {edge.source} -> {edge.target}  lag {edge.lag}  te {edge.te:.4f} bits  phi {edge.phi:+.2f}  "
                f"together {edge.together}  q {edge.q:.2g}"
            )
    if report.files:
        lines += ["", f"{len(report.files)} files written, beginning with {report.files[0]}"]
    return "\n".join(lines)
