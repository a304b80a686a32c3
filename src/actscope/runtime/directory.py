"""The runtime directory, in which the processes of one user discover each other."""

from __future__ import annotations

import os
from pathlib import Path

from actscope.errors import RingError
from actscope.runtime.private_files import check_private_dir


def runtime_dir() -> Path:
    """Return this user's private runtime directory, and create it if it does not exist.

    It is $ACTSCOPE_RUNTIME_DIR if set, else $XDG_RUNTIME_DIR/actscope if $XDG_RUNTIME_DIR exists, else
    /tmp/actscope-<uid>.

    Raises:
        RingError: It cannot be created, is no directory, is a link, belongs to another user, or is open to others.
    """
    path = _chosen_dir()
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        check_private_dir(path)
    except FileExistsError as error:
        raise RingError(f"{path}: expected a directory: remove it, or set ACTSCOPE_RUNTIME_DIR") from error
    except OSError as error:
        if isinstance(error, RingError):
            raise
        raise RingError(f"{path}: cannot be made ({error.strerror}): set ACTSCOPE_RUNTIME_DIR") from error
    return path


def _chosen_dir() -> Path:
    chosen = os.environ.get("ACTSCOPE_RUNTIME_DIR")
    if chosen:
        return Path(chosen).absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and Path(session).is_dir():
        return Path(session).absolute() / "actscope"
    return Path(f"/tmp/actscope-{os.geteuid()}")
