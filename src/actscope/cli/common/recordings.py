"""Opening the recording that a command was given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actscope.errors import RecordingError

if TYPE_CHECKING:
    from actscope.recording.reading.recording import Recording

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A recording: the directory that it was made in.")]


def check_there(path: Path) -> None:
    """RecordingError where there is nothing at all."""
    if not path.exists():
        raise RecordingError(
            f"{path}: there is no such directory; a recording is made by: actscope capture --to {path}"
        )


def open_recording(path: Path) -> Recording:
    """The recording; where opening it finds damage, a warning on standard error says so and what to do.

    Raises RecordingError when it is none.
    """
    from actscope.recording.reading.recording import Recording

    check_there(path)
    recording = Recording.open(path)
    if any(damage.acknowledged for damage in recording.damage):
        n = len(recording.damage)
        print(
            f"{path} is damaged in {n} place{'s' * (n > 1)}; what is whole is used. See: actscope verify {path}",
            file=sys.stderr,
        )
    return recording
