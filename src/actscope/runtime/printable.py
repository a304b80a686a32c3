"""Foreign text for people: names, ids and messages of files and clients, without effects on a terminal."""

from __future__ import annotations

import re

#: C0 and C1 controls and DEL, but for newline and tab; separators of lines; marks that reorder text; surrogates.
_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = re.compile(f"[{_UNSAFE}]")
_CONTROLS_AND_BREAKS = re.compile(f"[{_UNSAFE}\n\t]")


def printable(text: str) -> str:
    r"""Return text of several lines with its control characters as escapes, such as `\u001b`. Newlines and tabs stay.

    The escapes are those of JSON strings, so JSON stays JSON.
    """
    return _CONTROLS.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Return a name or an id as one line: newlines and tabs become escapes too, so it cannot begin a line of its own."""
    return _CONTROLS_AND_BREAKS.sub(_escaped, text)


def paragraph(text: str, indent: str = "    ") -> str:
    """Return a message of one or more lines, those after the first indented, so that none looks like a message of its own."""
    return printable(text).rstrip("\n").replace("\n", f"\n{indent}")


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
