"""Text with labelled character spans, written in a small inline markup.

`[label]` opens a label at that character, `[/label]` closes it, and the end of the sentence closes all that are open.
So a label never begins before its evidence, and a reader of the left context can know it.
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
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_FIRST_LETTER = re.compile(r'^((?:\[/?[a-z_]+\]|")*)([a-z])')


@dataclass(frozen=True)
class Text:
    """A text and, for every label of `LABELS`, its spans `(start, end)` in characters: ordered, disjoint, not empty."""

    text: str
    spans: Spans


_MARKS = re.compile(r"^(?:\[/?[a-z_]+\])*")


def capital(marked: str) -> str:
    """Return the sentence with its first letter, after any marks and quotes, in upper case."""
    return _FIRST_LETTER.sub(lambda m: m[1] + m[2].upper(), marked)


def uncapital(marked: str) -> str:
    """Return the sentence with its first letter in lower case."""
    at = len(marked) - len(_MARKS.sub("", marked, count=1))
    return marked[:at] + marked[at : at + 1].lower() + marked[at + 1 :]


def plain(marked: str) -> str:
    """Return the sentence without its marks."""
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
        """Append text without marks."""
        self._parts.append(text)
        self._length += len(text)

    def sentence(self, marked: str) -> None:
        """Append marked sentences. Labels opened in a sentence end with it; labels opened around it stay open."""
        around = set(self._open)
        at = 0
        for mark in _MARK.finditer(marked):
            self._words(marked[at : mark.start()], around)
            (self.close if mark[1] else self.open)(mark[2])
            at = mark.end()
        self._words(marked[at:], around)
        self._close_but(around)

    def _words(self, words: str, around: set[str]) -> None:
        """Append unmarked words. A sentence may end among them, unless a quotation is still open."""
        sentences = [words] if "speech" in self._open else _SENTENCE_END.split(words)
        for i, sentence in enumerate(sentences):
            if i:
                self._close_but(around)
                self.raw(" ")
            self.raw(sentence)

    def _close_but(self, kept: set[str]) -> None:
        for label in set(self._open) - kept:
            self.close(label)

    def passage(self, sentences: list[str]) -> None:
        """Append sentences, separated by spaces."""
        for i, marked in enumerate(sentences):
            if i:
                self.raw(" ")
            self.sentence(marked)

    def text(self) -> Text:
        """Return the text. Labels that are still open end at its end."""
        for label in list(self._open):
            self.close(label)
        return Text("".join(self._parts), {label: tuple(spans) for label, spans in self._spans.items()})
