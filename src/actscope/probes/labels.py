"""Labeled text for training probes, one JSON object per line.

    {"text": "The wolf ran at her.", "spans": {"danger": [[4, 20]], "joy": []}}
    {"text": "What a lovely day!", "label": {"joy": true, "danger": false}}

`spans` are character ranges with exclusive ends. A label that a text does not name is unknown there, and the text is skipped for
that label. `label` applies to the whole text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.runtime.decoding import decode_json
from actscope.runtime.regular_files import open_regular

Spans = dict[str, tuple[tuple[int, int], ...]]


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


def read_labelled(path: Path) -> Iterator[LabelledText]:
    """Yield the texts of a file. Raises ProbeError with the line number if a line cannot be read."""
    with os.fdopen(open_regular(path, ProbeError), "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _read_line(line, f"{path}, line {number}")


def _read_line(raw: bytes, where: str) -> LabelledText:
    what = f'{where}: expected {{"text": ..., "spans": {{label: [[start, end], ...]}}}}'
    line = decode_json(raw, _Line, ProbeError, what)
    spans = dict(line.spans or {})
    for name, holds in (line.label or {}).items():
        spans[name] = ((0, len(line.text)),) if holds else ()
    if not spans:
        raise ProbeError(f'{where}: no labels; give "spans" or "label"')
    for name, ranges in spans.items():
        outside = next((r for r in ranges if not 0 <= r[0] < r[1] <= len(line.text)), None)
        if outside is not None:
            raise ProbeError(
                f"{where}: span {list(outside)} of {name!r} is not inside the text of {len(line.text)} characters"
            )
    return LabelledText(line.text, spans)


def known_labels(texts: Iterable[LabelledText]) -> list[str]:
    """Return every label that occurs in some text, sorted."""
    return sorted({name for text in texts for name in text.spans})
