"""Appends what is known of rows: labels, texts of token ids, and drops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from actscope.frames import Step
from actscope.recording.format import records, row_labels
from actscope.recording.format.index_keys import Kind, channel_of, key
from actscope.recording.writing.message_writer import MessageWriter
from actscope.recording.writing.step_book import StepBook

log = logging.getLogger("actscope.recording")

#: Maximum rows whose labels share a message. A larger step has its own message.
_LABEL_ROWS = 1 << 16


class LabelWriter:
    """Writes the labels of finished steps. Any thread may call `write`; one call at a time works.

    Attributes:
        texts: Tokenizer callback from token ids to texts, or None.
    """

    def __init__(self, messages: MessageWriter, steps: StepBook) -> None:
        self.texts: Callable[[Sequence[int]], list[str]] | None = None
        self._messages = messages
        self._steps = steps
        self._one_at_a_time = threading.Lock()
        self._known_texts: set[int] = set()
        self._reported = False

    def write(self) -> int:
        """Append pending labels, texts and drops. Return the last message number. Raises RecordingPoisoned."""
        with self._one_at_a_time:
            steps, drops = self._steps.take_unwritten()
            if steps:
                self._write_labels(steps)
                self._write_texts(steps)
            if drops:
                self._messages.note(Kind.DROPS, records.Drops(_joined(drops)))
            return self._messages.last_number

    def _write_labels(self, steps: list[tuple[Step, int]]) -> None:
        for batch in _batches(steps):
            first, n_rows = batch[0][1], sum(step.n_rows for step, _ in batch)
            header = key(Kind.LABELS, first_row=first, n_rows=n_rows, first_step=batch[0][0].number)
            self._messages.send(channel_of(Kind.LABELS), header, [row_labels.encode(batch)], batch[0][0].time_ns)

    def _write_texts(self, steps: list[tuple[Step, int]]) -> None:
        if self.texts is None:
            return
        seen = np.unique(np.concatenate([step.meta["token_id"] for step, _ in steps]))
        fresh = [i for i in seen.tolist() if i >= 0 and i not in self._known_texts]
        if fresh:
            self._known_texts.update(fresh)
            texts = self._texts_of(fresh)
            if texts:
                self._messages.note(Kind.TOKENS, records.Tokens(texts=texts))

    def _texts_of(self, ids: list[int]) -> dict[int, str]:
        """Return the texts of these ids, or none if the user's tokenizer fails: its error must not lose rows."""
        assert self.texts is not None
        try:
            texts = [str(text).encode("utf-8", "replace").decode() for text in self.texts(ids)]
            return dict(zip(ids, texts, strict=True))
        except Exception:
            if not self._reported:
                self._reported = True
                log.exception("%s: the tokenizer failed; such tokens are kept without their text", self._messages.path)
            return {}


def _batches(steps: list[tuple[Step, int]]) -> list[list[tuple[Step, int]]]:
    """Return the steps in the order of their rows, in batches of at most `_LABEL_ROWS` rows (or one larger step)."""
    batches: list[list[tuple[Step, int]]] = [[]]
    rows = 0
    for step, first in sorted(steps, key=lambda entry: entry[1]):
        if batches[-1] and rows + step.n_rows > _LABEL_ROWS:
            batches.append([])
            rows = 0
        batches[-1].append((step, first))
        rows += step.n_rows
    return batches


def _joined(drops: list[records.Drop]) -> list[records.Drop]:
    """Return the drops with adjacent row ranges merged."""
    joined: list[records.Drop] = []
    for drop in sorted(drops, key=lambda d: (d.site, d.first_row)):
        last = joined[-1] if joined else None
        if last and last.site == drop.site and last.why == drop.why and last.first_row + last.n_rows == drop.first_row:
            joined[-1] = msgspec.structs.replace(last, n_rows=last.n_rows + drop.n_rows)
        else:
            joined.append(drop)
    return joined
