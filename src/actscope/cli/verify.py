"""actscope verify: check every byte of a recording."""

from __future__ import annotations

import json

import typer

from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.cli.common.recordings import Directory, check_there


def verify(
    path: Directory,
    as_json: options.Json = False,
) -> None:
    """Check every byte of a recording: its checksums, that all blocks and labels decode, and that rows have labels.

    Exits 1, with a list, when acknowledged bytes are missing or changed, or something does not decode. Bytes that a crash cut
    off after the last acknowledged one are reported and are no damage. Changes nothing.

    Example: actscope verify run.acts
    """
    check_there(path)
    from actscope.cli.common.progress import ProgressBar as Bars
    from actscope.recording.reading.verification import verify as verify_recording

    with resumable("interrupted: not everything was checked; repeat the command to start over"), Bars() as bars:
        verdict = verify_recording(path, bars.update)
    show(json.dumps(verdict.as_dict()) if as_json else verdict.as_text())
    if not verdict.ok:
        raise typer.Exit(1)
