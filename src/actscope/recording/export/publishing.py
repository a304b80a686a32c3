"""Atomic publication of an export."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actscope.errors import RecordingError
from actscope.recording.format.packets import HEADER, scan_packets
from actscope.runtime.decoding import decode_json
from actscope.runtime.publish import sync_directory
from actscope.runtime.regular_files import open_regular, read_regular

DESCRIPTION = "export.json"
#: Its name in a folder that other tools read as one table: they skip names that begin with `_`.
HIDDEN_DESCRIPTION = f"_{DESCRIPTION}"
#: Largest description. It has the texts of all tokens.
_MOST_DESCRIPTION = 256 << 20


@contextmanager
def publishing(to: Path, *, force: bool) -> Iterator[Path]:
    """Stage an export (see `staged`).

    Raises:
        RecordingError: `to` exists, unless `force` is set and it is an earlier export. Raised before anything is written.
    """
    check_free(to, force=force)
    with staged(to) as temporary:
        yield temporary


@contextmanager
def staged(to: Path) -> Iterator[Path]:
    """Yield a temporary path beside `to`. Renames it to `to` when the block succeeds; removes it when the block raises.

    What was at `to` before is replaced. What is published is private: directories get mode 0700 and files 0600.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _seal(temporary)
        _put_in_place(temporary, to)
    finally:
        _remove(temporary)


def check_free(to: Path, *, force: bool) -> None:
    """Raise RecordingError if an export must not be published at `to`."""
    if not os.path.lexists(to):
        return
    if not force:
        raise RecordingError(f"{to} exists already; choose another path, or replace it with --force")
    if to.is_symlink() or not (_is_packets(to) if to.is_file() else _is_export(to)):
        raise RecordingError(
            f"{to} is not an earlier export: it is not replaced, with --force neither; choose another path"
        )


def _is_export(path: Path) -> bool:
    description = path / (HIDDEN_DESCRIPTION if (path / HIDDEN_DESCRIPTION).exists() else DESCRIPTION)
    try:
        data = read_regular(description, _MOST_DESCRIPTION, RecordingError)
        found = decode_json(data, dict[str, object], RecordingError, f"{description}: not an export")
    except (OSError, RecordingError):
        return path.is_dir() and not any(path.iterdir())
    return found.get("format") == "actscope-export"


def _is_packets(path: Path) -> bool:
    """Return whether a file is empty or an actscope packet stream."""
    try:
        with os.fdopen(open_regular(path, RecordingError), "rb") as file:
            first = next(scan_packets(file, str(path)), None)
    except (OSError, RecordingError):
        return False
    return first is None or first.name == HEADER


def _put_in_place(temporary: Path, to: Path) -> None:
    if to.is_dir() or (to.is_file() and temporary.is_dir()):
        old = to.with_name(f"{temporary.name}.old")
        to.rename(old)
        temporary.rename(to)
        _remove(old)
    else:
        temporary.replace(to)
    sync_directory(to.parent)


def _seal(path: Path) -> None:
    if path.is_dir():
        for folder, _, names in os.walk(path, topdown=False):
            for name in names:
                _seal_file(Path(folder, name))
            os.chmod(folder, 0o700)
            sync_directory(Path(folder))
    else:
        _seal_file(path)


def _seal_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
