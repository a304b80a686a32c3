"""actscope import: create a recording from a packet stream."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import SettingsError
from actscope.extras import require
from actscope.runtime.writable import check_can_create


@with_settings
def import_(
    packets: Annotated[Path, typer.Argument(metavar="PACKETS", help="Packet stream, of actscope or another tool.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Directory of the recording to create.")],
    flags: Annotated[Given, options.IMPORT],
    as_json: options.Json = False,
) -> None:
    """Create a recording from a packet stream. A foreign stream, of another tool, needs --dtype and --width.

    Example: actscope import old.packets --to run.acts --dtype float16 --width 4096
    """
    require("record")
    check_can_create(to, "--to", SettingsError)
    from actscope.cli.common.progress import ProgressBar
    from actscope.recording.importing import import_packets

    stopped = f"interrupted: nothing was written to {to}, and {packets} is as it was; repeat the command to start over"
    with resumable(stopped), ProgressBar() as bars:
        report = import_packets(packets, to, options.IMPORT.make(flags), bars.update)
    if as_json:
        show(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    kind = "actscope's format" if report.ours else "another tool's format"
    show(
        f"{report.path}: {report.rows} rows of {report.requests} requests at {len(report.sites)} sites, from "
        f"{report.packets} packets in {kind}; {report.skipped} skipped"
    )
