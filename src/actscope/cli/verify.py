"""actscope verify: every byte of a recording checked."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from actscope.cli.common.recordings import Directory, check_there


def verify(
    path: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every byte of a recording: checksums, that every block and every batch of labels decodes, and that rows have labels.

    Exits 1, with a list, when bytes that were acknowledged are missing or changed, or something does not decode. What a crash
    has cut off above the last acknowledged byte is told, and is no damage. Changes nothing.

    Example: actscope verify run.acts
    """
    from actscope.cli.common.progress import ProgressBar as Bars
    from actscope.recording.reading.verification import verify as verify_recording

    check_there(path)
    with Bars() as bars:
        verdict = verify_recording(path, bars.update)
    typer.echo(json.dumps(verdict.as_dict()) if as_json else verdict.as_text())
    if not verdict.ok:
        raise typer.Exit(1)
