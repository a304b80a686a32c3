"""The runtime directory: where the processes of one user find each other."""

from __future__ import annotations

import os
from pathlib import Path

from actscope.errors import RingError
from actscope.runtime.private_files import check_private_dir


def runtime_dir() -> Path:
    """Our private directory, made if need be; RingError when someone else could look into it or replace it.

    $ACTSCOPE_RUNTIME_DIR, else $XDG_RUNTIME_DIR/actscope where that exists, else /tmp/actscope-<uid>.
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
