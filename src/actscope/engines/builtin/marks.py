"""Text with labelled character spans, written in a small inline markup.

`[label]` opens a label at that character, `[/label]` closes it, and the end of the sentence closes all that are open.
So a label never reaches back before its evidence: a reader of the left context can know it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LABELS = (
    "danger", "fear", "joy", "sadness", "anger", "kindness", "past", "future", "number", "animal", "cold", "water",
    "food", "night", "speech", "question", "user_turn", "assistant_turn",
)  # fmt: skip

Spans = dict[str, tuple[tuple[int, int], ...]]

_MARK = re.compile(r"\[(/?)([a-z_]+)\]")
_FIRST_LETTER = re.compile(r'^((?:\[/?[a-z_]+\]|")*)([a-z])')


@dataclass(frozen=True)
class Text:
    """A text and, for every label of `LABELS`, its spans `(start, end)` in characters: ordered, disjoint, not empty."""

    text: str
    spans: Spans


def capital(marked: str) -> str:
    """The sentence with its first letter, behind any marks and quotes, in upper case."""
    return _FIRST_LETTER.sub(lambda m: m[1] + m[2].upper(), marked)


def uncapital(marked: str) -> str:
    """The sentence with its first letter in lower case."""
    head = re.match(r"(?:\[/?[a-z_]+\])*", marked)[0]
    return head + marked[len(head) : len(head) + 1].lower() + marked[len(head) + 1 :]


def plain(marked: str) -> str:
    """The sentence without its marks."""
    return _MARK.sub("", marked)


class Writer:
    """Collects marked sentences into one `Text`."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._open: dict[str, int] = {}
        self._spans: dict[str, list[tuple[int, int]]] = {label: [] for label in LABELS}

    def open(self, label: str) -> None:
        self._open.setdefault(label, self._length)

    def close(self, label: str) -> None:
        start = self._open.pop(label, self._length)
        if start < self._length:
            self._spans[label].append((start, self._length))

    def raw(self, text: str) -> None:
        """Appends text that holds no marks."""
        self._parts.append(text)
        self._length += len(text)

    def sentence(self, marked: str) -> None:
        """Appends a marked sentence; the labels opened in it end with it, those opened around it stay open."""
        around = set(self._open)
        at = 0
        for mark in _MARK.finditer(marked):
            self.raw(marked[at : mark.start()])
            (self.close if mark[1] else self.open)(mark[2])
            at = mark.end()
        self.raw(marked[at:])
        for label in set(self._open) - around:
            self.close(label)

    def passage(self, sentences: list[str]) -> None:
        """Appends sentences with a space between them."""
        for i, marked in enumerate(sentences):
            if i:
                self.raw(" ")
            self.sentence(marked)

    def text(self) -> Text:
        """What was written. Labels still open end here."""
        for label in list(self._open):
            self.close(label)
        return Text("".join(self._parts), {label: tuple(spans) for label, spans in self._spans.items()})
