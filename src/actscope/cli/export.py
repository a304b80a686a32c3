"""actscope export: a recording in a form that other tools read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actscope.cli.common.recordings import Directory, open_recording
from actscope.errors import SettingsError

Sites = Annotated[
    list[str] | None,
    typer.Option("--sites", help="Full names, patterns (layers.*.mlp_out) or e.g. 0,7 / first,last; may be repeated."),
]


def export(
    path: Directory,
    to: Annotated[Path, typer.Option("--to", help="Where to put it: a folder, for packets a file.")],
    form: Annotated[str, typer.Option("--format", help="safetensors, zarr, parquet, npy or packets.")] = "safetensors",
    sites: Sites = None,
    requests: Annotated[
        list[str] | None, typer.Option("--requests", help="Only this request; may be repeated.")
    ] = None,
    positions: Annotated[str, typer.Option(help="Only these positions of each request, e.g. 0:100 or 5:.")] = "",
    bf16: Annotated[
        str, typer.Option(help="bfloat16 in zarr, parquet and npy: float32 (exact) or uint16 (its bits).")
    ] = "float32",
    shard_mib: Annotated[int, typer.Option(min=1, help="safetensors: largest file, in MiB.")] = 5120,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the rows of a recording, with their labels, in a form that other tools read. It appears whole, or not at all.

    Example: actscope export run.acts --to rows --format parquet --sites first,last
    """
    from actscope.cli.common.progress import ProgressBar
    from actscope.recording.export import ExportOptions, Selection
    from actscope.recording.export import export as write

    selection = Selection(tuple(sites or ()), tuple(requests or ()), read_positions(positions))
    options = ExportOptions(bf16=bf16, shard_bytes=shard_mib << 20, force=force)  # type: ignore[arg-type]
    recording = open_recording(path)
    with ProgressBar() as bars:
        report = write(recording, to, form, selection, options, bars.update)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    rows = sum(report.rows.values())
    typer.echo(
        f"{report.path}: {rows} rows of {len(report.rows)} sites as {report.format} "
        f"({', '.join(sorted(set(report.stored_as.values())))}), {report.files} files, {report.bytes / (1 << 20):.1f} MiB"
    )


def read_positions(text: str) -> slice | None:
    """`a:b` as a slice, either side may be empty; an empty text is None. Raises SettingsError for anything else."""
    if not text:
        return None
    first, colon, after = text.partition(":")
    if not colon or not all(part == "" or (part.isascii() and part.isdecimal()) for part in (first, after)):
        raise SettingsError(f"positions {text!r}: expected a range such as 0:100, 5: or :20")
    return slice(int(first or 0), int(after) if after else None)
