"""File access with errors that name the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actscope.errors import ActscopeError, RecordingError

SEGMENT = re.compile(r"segment-(\d{6,9})\.mcap")


@contextmanager
def naming(path: Path, doing: str) -> Iterator[None]:
    """Convert an OSError into a RecordingError that names the file and the operation."""
    try:
        yield
    except ActscopeError:
        raise
    except OSError as error:
        raise RecordingError(f"{path}: {doing} failed: {error.strerror or error}") from error


def read_file(path: Path, most: int) -> bytes:
    """Return up to `most` bytes of a file. Does not block on a FIFO in its place. Raises FileNotFoundError or RecordingError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(fd, most)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordingError(f"{path}: reading failed: {error.strerror or error}") from error


def spare_name(path: Path, suffix: str) -> Path:
    """Return `path` + `suffix`, with a number appended if that name exists."""
    spare, count = path.with_name(path.name + suffix), 1
    while spare.exists():
        spare, count = path.with_name(f"{path.name}{suffix}.{count}"), count + 1
    return spare


def segment_files(path: Path) -> dict[int, Path]:
    """Return the segment files of a recording by number, ascending."""
    found = {}
    with naming(path, "listing the directory"), os.scandir(path) as entries:
        for entry in entries:
            if match := SEGMENT.fullmatch(entry.name):
                found[int(match[1])] = Path(entry.path)
    return dict(sorted(found.items()))
