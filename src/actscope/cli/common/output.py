"""Output of all commands: text of files, clients and engines reaches the terminal here, without its control characters."""

from __future__ import annotations

import logging
import sys
from typing import TypeVar

from actscope.runtime.printable import one_line, paragraph, printable

T = TypeVar("T")


def show(text: str, *, err: bool = False) -> None:
    """Print text to standard output, or a message to standard error, with control characters as escapes, and flush it.

    Lines of a message after the first are indented, so that a name with a line break cannot look like another message.
    """
    print(paragraph(text) if err else printable(text), file=sys.stderr if err else sys.stdout, flush=True)


def show_banner(text: str) -> None:
    """Print what a server says at its start to standard error, with its own lines. Names in it must be of one line."""
    print(printable(text), file=sys.stderr, flush=True)


def legible(value: T) -> T:
    """Return JSON values with each text as one line, for tables: an id with a line break cannot make a row of its own."""
    if isinstance(value, str):
        return one_line(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {legible(key): legible(one) for key, one in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return type(value)(map(legible, value))
    return value


class LegibleFormatter(logging.Formatter):
    """Formatter of log lines without control characters. Lines after the first are indented, so that none looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        return paragraph(super().format(record))
