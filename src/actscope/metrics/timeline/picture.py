"""A small picture of a gap for the terminal: one line a part, in order, each bar where its part lies in the gap."""

from __future__ import annotations

from collections.abc import Sequence

from actscope.metrics.timeline.sentence import milliseconds

#: A part: its name, its beginning and its length, both in nanoseconds.
Bar = tuple[str, int, int]

_EIGHTHS = " ▏▎▍▌▋▊▉"


def picture(start_ns: int, gap_ns: int, parts: Sequence[Bar], unexplained_ns: int, width: int = 48) -> list[str]:
    """Return the lines of the picture.

    Args:
        start_ns: Beginning of the gap.
        gap_ns: Its length.
        parts: Its parts, in order.
        unexplained_ns: What is left over, drawn without a bar: it may lie in several places.
        width: Columns of the bars.
    """
    lines = [
        f"  {name:<14}{milliseconds(ns):>9}  {_bar(start - start_ns, ns, gap_ns, width)}".rstrip()
        for name, start, ns in parts
    ]
    if unexplained_ns:
        lines.append(f"  {'unexplained':<14}{milliseconds(unexplained_ns):>9}")
    return lines


def _bar(offset_ns: int, ns: int, gap_ns: int, width: int) -> str:
    """Return a bar of at least an eighth of a column, at its place."""
    scale = 8 * width / max(gap_ns, 1)
    first, eighths = int(offset_ns * scale) // 8, max(1, round(ns * scale))
    return " " * min(first, width - 1) + "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
