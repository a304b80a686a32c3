"""Open the recording that a command was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actscope.cli.common.output import show
from actscope.errors import RecordingError
from actscope.extras import require

if TYPE_CHECKING:
    from actscope.recording.reading.recording import Recording

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the recording.")]


def check_there(path: Path) -> None:
    """Raise RecordingError if the path does not exist, and MissingExtra if recordings cannot be read here."""
    require("record")
    if not path.exists():
        raise RecordingError(f"{path}: there is no such directory; to make a recording: actscope capture --to {path}")


def open_recording(path: Path) -> Recording:
    """Open a recording, and warn on standard error if it is damaged.

    Raises:
        RecordingError: It is no recording.
        MissingExtra: The packages that read recordings are not installed.
    """
    check_there(path)
    from actscope.recording.reading.recording import Recording

    recording = Recording.open(path)
    if any(damage.acknowledged for damage in recording.damage):
        n = len(recording.damage)
        show(
            f"{path} is damaged in {n} place{'s' * (n > 1)}; the undamaged rest is used. See: actscope verify {path}",
            err=True,
        )
    return recording
