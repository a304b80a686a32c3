"""The runtime directory, in which the processes of one user discover each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from actscope.errors import RingError
from actscope.runtime.private_files import check_private_dir
from actscope.runtime.writable import can_create

log = logging.getLogger("actscope.runtime")

#: Longest path of the directory, in bytes: a UNIX socket's path has at most 107, and the longest name in it is
#: `/engine-<16 hex digits>.sock`.
MAX_PATH_BYTES = 107 - 29
_REMEDY = "set ACTSCOPE_RUNTIME_DIR"
_told: set[str] = set()


def runtime_dir() -> Path:
    """Return this user's private runtime directory, and create it if it does not exist.

    It is $ACTSCOPE_RUNTIME_DIR if set. Else it is the first of these that can be made, is this user's own and can be written to:
    $XDG_RUNTIME_DIR/actscope, /tmp/actscope-<uid>, /dev/shm/actscope-<uid>. The order is the same in every process, so that
    processes of one user meet. A directory that is passed over is logged once.

    Raises:
        RingError: It cannot be created, is no directory, is a link, belongs to another user, is open to others, or its path is
            too long for the sockets in it.
    """
    chosen = os.environ.get("ACTSCOPE_RUNTIME_DIR")
    if chosen:
        return _made(Path(chosen))
    passed: list[str] = []
    for path in _usual_places():
        try:
            found = _made(path)
            if not can_create(found):
                raise RingError(f"{found}: can only be read: {_REMEDY}")
        except RingError as error:
            passed.append(str(error))
            continue
        _tell_once(found, passed)
        return found
    raise RingError("\n".join(passed))


def _usual_places() -> Iterator[Path]:
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and os.path.isdir(session):
        yield Path(session) / "actscope"
    for parent in ("/tmp", "/dev/shm"):
        yield Path(parent) / f"actscope-{os.geteuid()}"


def _made(path: Path) -> Path:
    """Return a directory, absolute, that exists and is private. Raises RingError."""
    try:
        path = path.absolute()
        path.mkdir(mode=0o700, exist_ok=True)
        check_private_dir(path)
    except FileExistsError as error:
        raise RingError(f"{path}: expected a directory: remove it, or {_REMEDY}") from error
    except OSError as error:
        if isinstance(error, RingError):
            raise
        raise RingError(f"{path}: cannot be made ({error.strerror}): {_REMEDY}") from error
    if (size := len(os.fsencode(path))) > MAX_PATH_BYTES:
        raise RingError(
            f"{path}: has {size} bytes, and at most {MAX_PATH_BYTES} leave room for the names of sockets: "
            f"{_REMEDY} to a shorter path"
        )
    return path


def _tell_once(found: Path, passed: list[str]) -> None:
    said = "; ".join(passed)
    if said and said not in _told:
        _told.add(said)
        log.warning("the runtime directory is %s, because %s", found, said)
