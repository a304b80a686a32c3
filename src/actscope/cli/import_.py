"""actscope import: a packet stream becomes a recording."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def import_(
    packets: Annotated[Path, typer.Argument(metavar="PACKETS", help="A packet stream: ours, or another tool's.")],
    to: Annotated[Path, typer.Option("--to", help="The recording to make.")],
    dtype: Annotated[str, typer.Option(help="Another tool's stream: dtype of its rows, e.g. float16, bfloat16.")] = "",
    width: Annotated[int, typer.Option(help="Another tool's stream: numbers in one row.")] = 0,
    names: Annotated[
        str,
        typer.Option(
            help="Another tool's stream: a pattern for its names, e.g. '(?P<site>.+)_step(?P<position>[0-9]+)'."
        ),
    ] = "",
    request: Annotated[str, typer.Option(help="Another tool's stream: the request its rows belong to.")] = "imported",
    sites: Annotated[list[str] | None, typer.Option(help="Only sites that fit this pattern; may be repeated.")] = None,
    codec: Annotated[str, typer.Option(help="How to keep the rows (see actscope capture --help).")] = "lossless",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a recording from a packet stream. Ours say what they hold; of others one must say dtype and width.

    Example: actscope import old.packets --to run.acts --dtype float16 --width 4096
    """
    from actscope.cli.common.progress import ProgressBar
    from actscope.recording.importing import ImportOptions, import_packets

    options = ImportOptions(dtype, width, names, request, tuple(sites or ()), codec)
    with ProgressBar() as bars:
        report = import_packets(packets, to, options, bars.update)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    kind = "our own form" if report.ours else "another tool's form"
    typer.echo(
        f"{report.path}: {report.rows} rows of {report.requests} requests at {len(report.sites)} sites, from "
        f"{report.packets} packets in {kind}; {report.skipped} left out"
    )
