"""actscope recover: close a recording after a crash."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from actscope.cli.common import options
from actscope.cli.common.output import show
from actscope.cli.common.recordings import Directory, check_there
from actscope.errors import RecordingDamaged


def recover(
    path: Directory,
    salvage: Annotated[
        bool,
        typer.Option(
            "--salvage",
            help="Close the recording also around damaged acknowledged bytes. The old bytes are kept aside.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Close a recording after a crash: cut off unacknowledged bytes (kept aside in *.torn), and rebuild the index.

    Exits 1, and changes nothing, when acknowledged bytes are missing or changed; --salvage then keeps everything that is whole.
    A second run changes nothing. `actscope capture --resume` recovers by itself.

    Example: actscope recover run.acts
    """
    check_there(path)
    from actscope.cli.common.progress import ProgressBar
    from actscope.store import recover as mend

    try:
        with ProgressBar() as bars:
            report = mend(path, salvage=salvage, progress=lambda done, total: bars.update("bytes", done, total))
    except RecordingDamaged as error:
        said = str(error).replace("salvage=True", "--salvage")
        if as_json:
            show(json.dumps({"ok": False, "path": str(path), "error": said}))
        else:
            show(f"actscope: {said}", err=True)
        raise typer.Exit(1) from error
    found = {
        "ok": True,
        "path": str(report.path),
        "changed": report.changed,
        "messages": report.messages,
        "segments": report.segments,
        "cut_bytes": report.cut_bytes,
        "kept": [str(kept) for kept in report.kept],
        "lost": [list(numbers) for numbers in report.lost],
        "damage": [str(damage) for damage in report.damage],
    }
    show(json.dumps(found) if as_json else _text(found))


def _text(found: dict[str, Any]) -> str:
    lines = [f"found: {damage}" for damage in found["damage"]]
    lines += [f"kept aside: {kept}" for kept in found["kept"]]
    lines += [f"lost: messages {first} to {last}" for first, last in found["lost"]]
    what = f"closed; {found['cut_bytes']} bytes cut" if found["changed"] else "no recovery was needed: nothing changed"
    return "\n".join([*lines, f"{found['path']}: {what}; {found['messages']} messages in {found['segments']} segments"])
