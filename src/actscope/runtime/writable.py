"""Whether something can be created at a path, asked before the work whose result is to be written there."""

from __future__ import annotations

import os
from pathlib import Path

from actscope.errors import ActscopeError


def can_create(path: Path) -> bool:
    """Return whether a directory can be created at `path` with its missing parents, or written to. Creates nothing."""
    return not _why_not(path)


def check_can_create(path: Path, flag: str, error: type[ActscopeError], *, within: Path | None = None) -> None:
    """Raise `error` unless a directory can be created at `path` with its missing parents, or written to. Creates nothing.

    Args:
        path: The directory.
        flag: Name of the setting in the message.
        error: Error to raise.
        within: The directory that is written to, if it is another one: that of a file, or of what is renamed to `path`.

    Raises:
        ActscopeError: An `error` that names the path, and says why nothing can be written there.
    """
    if why := _why_not(path if within is None else within):
        raise error(f"{flag} {path}: {why}: choose another place")


def check_can_write(path: Path, flag: str, error: type[ActscopeError]) -> None:
    """Raise `error` unless a file can be written at `path`, whose directory must exist. Creates nothing. Arguments as above."""
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise error(f"{flag} {path}: is a directory: name a file in it")
    if not os.path.isdir(directory):
        raise error(f"{flag} {path}: there is no directory {directory}: create it, or choose another place")
    check_can_create(path, flag, error, within=Path(directory))


def _why_not(path: Path) -> str:
    where = os.path.abspath(path)
    while not os.path.lexists(where) and os.path.dirname(where) != where:
        where = os.path.dirname(where)
    if not os.path.isdir(where):
        return f"{where} is no directory"
    if not os.access(where, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return f"{where} cannot be written to by this user, or is read-only"
    return ""
