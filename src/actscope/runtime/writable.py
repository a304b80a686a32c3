"""Whether something can be created at a path, asked before the work whose result is to be written there."""

from __future__ import annotations

import os
from pathlib import Path

from actscope.errors import ActscopeError


def check_can_create(path: Path, flag: str, error: type[ActscopeError], *, directory: bool = True) -> None:
    """Raise `error` unless a directory (or a file) can be created, or written to, at `path`. Creates nothing.

    Args:
        path: The directory, or the file.
        flag: Name of the setting in the message.
        error: Error to raise.
        directory: Whether `path` is to be a directory. Missing parents are then assumed to be created.

    Raises:
        ActscopeError: An `error` that names the path, and says why nothing can be written there.
    """
    where = path if directory else path.absolute().parent
    while not os.path.lexists(where) and where != where.parent:
        where = where.absolute().parent
    what = "choose another place"
    if not where.is_dir():
        raise error(f"{flag} {path}: {where} is no directory: {what}")
    if not os.access(where, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise error(f"{flag} {path}: {where} cannot be written to by this user, or is read-only: {what}")
