"""Triggers: rules that select the requests to keep, in a small language.

    rule   = "probe" ID OP NUMBER clause…          keep the rows around each row whose score matches
           | "sample" SHARE                        keep this share of all requests, selected by hash of the id
    OP     = ">" | ">=" | "<" | "<="
    clause = "mean" "over" N "tokens"              compare the mean of the last N scores; needs N scores
           | "before" EXTENT | "after" EXTENT      extent to keep around the row; default: everything
           | "cooldown" EXTENT                     minimum distance between two firings for a request
    EXTENT = N "tokens" | N "ms" | N "s" | N "min" | N "h"

    probe danger > 3.2 before 20 tokens
    probe danger >= 2 mean over 8 tokens before 5s after 64 tokens cooldown 1min

A rule fires at every row for which it holds. `before` and `after` count from that row, which is kept too. Rows that several
firings cover are kept once. Special tokens, non-finite scores, rejected drafts and rows after the end never fire, and are
excluded from means.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from actscope.errors import SettingsError
from actscope.recording.flight.windows import TokensOrTime

_COMPARE: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_WORD = re.compile(r"\s*(?P<word>[<>]=?|[^\s<>]+)")
#: A probe's id: 1 to 128 characters.
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_MEAN = 100_000


@dataclass(frozen=True, slots=True)
class ProbeRule:
    """Rule that fires where a probe's score, or the mean of its last `mean_over` scores, passes `threshold`."""

    text: str
    probe: str
    op: str
    threshold: float
    mean_over: int = 1
    before: TokensOrTime | None = None
    after: TokensOrTime | None = None
    cooldown: TokensOrTime | None = None

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Return whether each value passes the threshold: bool, of the shape of `values`."""
        found: np.ndarray = _COMPARE[self.op](values, self.threshold)
        return found


@dataclass(frozen=True, slots=True)
class SampleRule:
    """Rule that keeps the share `rate` (0 to 1) of all requests, each in full."""

    text: str
    rate: float


Rule = ProbeRule | SampleRule


def parse_rule(text: str) -> Rule:
    """Parse one rule.

    Raises:
        SettingsError: The text is not a rule. The message gives the character and the expected word.
    """
    words = _Words(text)
    kind = words.take("'probe' or 'sample'", lambda word: word in ("probe", "sample"))
    rule = _probe_rule(words) if kind == "probe" else SampleRule(text, words.number(0, 1, "a share between 0 and 1"))
    words.end()
    return rule


def _probe_rule(words: _Words) -> ProbeRule:
    probe = words.take("the id of a probe", lambda word: _ID.fullmatch(word) is not None)
    op = words.take("one of > >= < <=", lambda word: word in _COMPARE)
    threshold = words.number(-math.inf, math.inf, "a number")
    clauses: dict[str, Any] = {}
    while (name := words.clause(clauses)) is not None:
        clauses[name] = _mean(words) if name == "mean" else words.extent()
    if "mean" in clauses:
        clauses["mean_over"] = clauses.pop("mean")
    return ProbeRule(words.text, probe, op, threshold, **clauses)


def _mean(words: _Words) -> int:
    words.take("'over'", lambda word: word == "over")
    return words.extent(lambda extent: 1 <= (extent.tokens or 0) <= _MAX_MEAN, "a number of tokens").tokens or 1


class _Words:
    """Tokenizer of a rule, with a cursor."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = [(m["word"], m.start("word")) for m in _WORD.finditer(text)]
        self._next = 0

    def take(self, expected: str, fits: Callable[[str], bool]) -> str:
        word = self._peek()
        if word is None or not fits(word):
            raise self.problem(expected)
        self._next += 1
        return word

    def number(self, low: float, high: float, expected: str) -> float:
        return float(self.take(expected, lambda word: _is_number(word, low, high)))

    def clause(self, taken: Collection[str]) -> str | None:
        """Return the name of the next clause, or None at the end. Each clause may occur once."""
        if self._peek() is None:
            return None
        names = [name for name in ("mean", "before", "after", "cooldown") if name not in taken]
        return self.take(f"{', '.join(names)} or the end", lambda word: word in names)

    def extent(
        self, fits: Callable[[TokensOrTime], bool] = lambda extent: True, expected: str = "e.g. 20 tokens or 5s"
    ) -> TokensOrTime:
        """Return an extent of one or two words: `5s`, `5 s`, `20 tokens`. The unit is required."""
        for n in (2, 1):
            part = "".join(word for word, _ in self._words[self._next : self._next + n])
            found = _extent(part)
            if found is not None and fits(found) and not part[-1].isdigit():
                self._next += n
                return found
        raise self.problem(expected)

    def end(self) -> None:
        if self._peek() is not None:
            raise self.problem("the end")

    def _peek(self) -> str | None:
        return self._words[self._next][0] if self._next < len(self._words) else None

    def problem(self, expected: str) -> SettingsError:
        word = self._peek()
        found = "the end" if word is None else repr(word)
        place = len(self.text.rstrip()) if word is None else self._words[self._next][1]
        return SettingsError(f"trigger {self.text!r}, character {place + 1}: expected {expected}, found {found}")


def _is_number(word: str, low: float, high: float) -> bool:
    try:
        return math.isfinite(float(word)) and low <= float(word) <= high
    except ValueError:
        return False


def _extent(text: str) -> TokensOrTime | None:
    try:
        return TokensOrTime.parse(text)
    except SettingsError:
        return None
