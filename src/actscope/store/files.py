"""File access with errors that name the file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actscope.errors import ActscopeError, RecordingError
from actscope.runtime.regular_files import open_regular

SEGMENT = re.compile(r"segment-(\d{6,9})\.mcap")


@contextmanager
def naming(path: Path, doing: str) -> Iterator[None]:
    """Convert an OSError into a RecordingError that names the file and the operation."""
    try:
        yield
    except ActscopeError:
        raise
    except OSError as error:
        full = ": make room, and repeat the command" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise RecordingError(f"{path}: {doing} failed: {error.strerror or error}{full}") from error


def read_file(path: Path, most: int) -> bytes:
    """Return up to `most` bytes of a regular file. A link or a pipe in its place is refused without waiting for it.

    Raises FileNotFoundError or RecordingError.
    """
    fd = open_regular(path, RecordingError, follow=False)
    try:
        return os.read(fd, most)
    except OSError as error:
        raise RecordingError(f"{path}: reading failed: {error.strerror or error}") from error
    finally:
        os.close(fd)


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
