"""Labeled text for training probes, one JSON object per line.

    {"text": "The wolf ran at her.", "spans": {"danger": [[4, 20]], "joy": []}}
    {"text": "What a lovely day!", "label": {"joy": true, "danger": false}}

`spans` are character ranges with exclusive ends. A label that a text does not name is unknown there, and the text is skipped for
that label. `label` applies to the whole text.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.probes.format import ID_RULE, is_id
from actscope.runtime.decoding import decode_json
from actscope.runtime.printable import one_line
from actscope.runtime.regular_files import open_regular

Spans = dict[str, tuple[tuple[int, int], ...]]

_EXAMPLE = '{"text": "The wolf ran.", "spans": {"danger": [[4, 8]]}} or {"text": "...", "label": {"danger": true}}'
_MOST_FAULTS = 20
_MOST_SHOWN = 60


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    spans: Spans | None = None
    label: dict[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and, for each known label, the character ranges where it holds."""

    text: str
    spans: Spans

    def token_labels(self, label: str, offsets: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
        """Return whether each token overlaps a span of `label`: bool [n_tokens].

        `offsets` [n_tokens, 2] are the tokens' character ranges. Empty ranges never overlap.
        """
        ranges = np.asarray(offsets, np.int64).reshape(-1, 2)
        held = np.zeros(len(ranges), bool)
        for begin, end in self.spans[label]:
            held |= (ranges[:, 0] < end) & (ranges[:, 1] > begin)
        return held & (ranges[:, 0] < ranges[:, 1])


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The texts of a label file.

    Attributes:
        texts: Each text once. Labels that several lines give to one text are together.
        repeated: Number of lines that repeat the text of an earlier line.
    """

    texts: list[LabelledText]
    repeated: int


def read_labelled(path: Path) -> Iterator[LabelledText]:
    """Yield the text of each line of a file. Raises ProbeError, `<path>:<line>: ...`, if a line cannot be read."""
    for where, line in _lines(path):
        yield _read_line(line, where)


def load_labelled(path: Path, most: int | None = None) -> LabelFile:
    """Read a label file, and check all of its lines.

    A text that comes twice would be fitted and also measured, so lines with one text are joined.

    Args:
        path: The file.
        most: Number of lines to read; None reads all.

    Returns:
        The texts.

    Raises:
        ProbeError: There is no text in it, or lines are wrong. Names each wrong line (the first 20), as `<path>:<line>`, with
            what was expected and found.
    """
    found: dict[str, tuple[Spans, str]] = {}
    faults: list[str] = []
    n = 0
    for where, line in islice(_lines(path), most):
        n += 1
        try:
            text = _read_line(line, where)
            spans, first = found.setdefault(text.text, ({}, where))
            _add_labels(spans, text.spans, where, first)
        except ProbeError as error:
            faults.append(str(error))
    if not n:
        raise ProbeError(f"{path}: there is no text in it: expected one on each line, such as {_EXAMPLE}")
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more lines"] * (len(faults) > _MOST_FAULTS)
        raise ProbeError("\n".join([*faults[:_MOST_FAULTS], *more]))
    return LabelFile([LabelledText(text, spans) for text, (spans, _) in found.items()], n - len(found))


def _add_labels(spans: Spans, more: Spans, where: str, first: str) -> None:
    """Add the labels of another line of the same text. Raises ProbeError if both lines give a label, in different ways."""
    for name, ranges in more.items():
        if sorted(spans.setdefault(name, ranges)) != sorted(ranges):
            raise ProbeError(
                f"{where}: {name!r} holds elsewhere than {first} says of the same text ({_shown(spans[name])} there, "
                f"{_shown(ranges)} here): remove one of the lines"
            )


def _shown(ranges: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{begin}-{end}" for begin, end in ranges[:3]) + ", ..." * (len(ranges) > 3) or "nowhere"


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the lines that are not blank, each with its place."""
    try:
        file = os.fdopen(open_regular(path, ProbeError), "rb")
    except FileNotFoundError as error:
        raise ProbeError(
            f"{path}: there is no such file; expected labelled texts, one JSON object on a line"
        ) from error
    with file as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ProbeError(f"{path}: expected UTF-8, found UTF-16: save it as UTF-8")
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                yield f"{path}:{number}", content


def _read_line(raw: bytes, where: str) -> LabelledText:
    shown = one_line(raw[:_MOST_SHOWN].decode("utf-8", "replace").strip()) + "..." * (len(raw) > _MOST_SHOWN)
    line = decode_json(raw, _Line, ProbeError, f"{where}: expected {_EXAMPLE}, found {shown}")
    if not line.text:
        raise ProbeError(f"{where}: the text is empty")
    spans = dict(line.spans or {})
    for name, holds in (line.label or {}).items():
        if name in spans:
            raise ProbeError(f'{where}: {name!r} is in "spans" and in "label": give one of them')
        spans[name] = ((0, len(line.text)),) if holds else ()
    if not spans:
        raise ProbeError(f'{where}: no labels; give "spans" or "label"')
    for name, ranges in spans.items():
        if not is_id(name):
            raise ProbeError(f"{where}: label {name!r} cannot be the name of a probe: {ID_RULE}")
        outside = next((r for r in ranges if not 0 <= r[0] < r[1] <= len(line.text)), None)
        if outside is not None:
            raise ProbeError(
                f"{where}: span {list(outside)} of {name!r} is not inside the text of {len(line.text)} characters"
            )
    return LabelledText(line.text, spans)


def known_labels(texts: Iterable[LabelledText]) -> list[str]:
    """Return every label that occurs in some text, sorted."""
    return sorted({name for text in texts for name in text.spans})
