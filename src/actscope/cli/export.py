"""actscope export: write a recording in a format that other tools read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.cli.common.recordings import Directory, open_recording
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import SettingsError
from actscope.extras import RECORDING, require

#: Packages that a format needs, by their import names.
_LIBRARIES = {"zarr": ("zarr",), "parquet": ("pyarrow",)}

Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--sites",
        metavar="SITES",
        help="Sites to read: full names, patterns (layers.*.mlp_out), or e.g. 0,7 or first,last. Repeatable. By default all.",
    ),
]


@with_settings
def export(
    path: Directory,
    flags: Annotated[Given, options.EXPORT],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="Folder to create, or file with format packets.")],
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="safetensors, zarr, parquet, npy or packets.")
    ] = "safetensors",
    sites: Sites = None,
    requests: Annotated[
        list[str] | None,
        typer.Option("--requests", metavar="ID", help="Id of a request to export. Repeatable. By default all."),
    ] = None,
    positions: Annotated[
        str,
        typer.Option(metavar="RANGE", help="Positions of each request to export, e.g. 0:100 or 5:. By default all."),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Export the rows of a recording and their labels to a format that other tools read. The export is atomic.

    Example: actscope export run.acts --to rows --format parquet --sites first,last
    """
    require("export" if form in _LIBRARIES else "record", *RECORDING, *_LIBRARIES.get(form, ()))
    from actscope.cli.common.progress import ProgressBar
    from actscope.recording.export import Selection
    from actscope.recording.export import export as write

    selection = Selection(tuple(sites or ()), tuple(requests or ()), read_positions(positions))
    recording = open_recording(path)
    stopped = (
        f"interrupted: nothing was written to {to}, and the recording is as it was; repeat the command to start over"
    )
    with resumable(stopped), ProgressBar() as bars:
        report = write(recording, to, form, selection, options.EXPORT.make(flags), bars.update)
    if as_json:
        show(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    rows = sum(report.rows.values())
    show(
        f"{report.path}: {rows} rows of {len(report.rows)} sites as {report.format} "
        f"({', '.join(sorted(set(report.stored_as.values())))}), {report.files} files, {report.bytes / (1 << 20):.1f} MiB"
    )


def read_positions(text: str) -> slice | None:
    """Return `a:b` as a slice (either side may be empty), and None for an empty text. Raises SettingsError for any other text."""
    if not text:
        return None
    first, colon, after = text.partition(":")
    if not colon or not all(part == "" or (part.isascii() and part.isdecimal()) for part in (first, after)):
        raise SettingsError(f"positions {text!r}: expected a range such as 0:100, 5: or :20")
    return slice(int(first or 0), int(after) if after else None)
