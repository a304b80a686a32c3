"""Log to the terminal, and to a file that only its owner can read."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from actscope.cli.common.output import LegibleFormatter
from actscope.errors import SettingsError

LEVELS = ("debug", "info", "warning", "error")
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MOST_BYTES = 10 << 20
_KEPT = 3


def log_to(level: str, file: Path | None = None) -> list[logging.Handler]:
    """Replace the handlers of the logger "actscope" by standard error, and `file` if it is given.

    The file gets mode 0600, and a symbolic link is refused. It is rotated at 10 MiB; the three newest old files are kept.

    Args:
        level: Lowest level that is logged: debug, info, warning or error.
        file: Log file, appended to.

    Returns:
        The new handlers.

    Raises:
        SettingsError: The level is unknown, or the file cannot be written.
    """
    if level not in LEVELS:
        raise SettingsError(f"--log-level {level!r}: expected one of {', '.join(LEVELS)}")
    handlers: list[logging.Handler] = [_Console(), *([_file(file)] if file is not None else [])]
    for handler in handlers:
        handler.setFormatter(LegibleFormatter(_LINE))
    log = logging.getLogger("actscope")
    log.handlers[:], log.propagate = handlers, False
    log.setLevel(level.upper())
    return handlers


class _Console(logging.Handler):
    """A handler that writes to the current `sys.stderr`. A running progress bar replaces it, and prints above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except OSError:
            self.handleError(record)


class _PrivateFile(RotatingFileHandler):
    """A rotating log file with mode 0600, old or new. Does not follow a symbolic link."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.baseFilename, flags, 0o600)
        os.fchmod(fd, 0o600)
        return os.fdopen(fd, "a", encoding="utf-8")


def _file(path: Path) -> logging.Handler:
    try:
        return _PrivateFile(path, maxBytes=_MOST_BYTES, backupCount=_KEPT, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--log-file {path}: cannot be written: {error.strerror}") from error
