"""Extraction of rows of labelled texts: run the texts through the engine and collect the taps' rows, aligned to characters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from actscope.engines.hf.engine import Engine
from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.request import Output, Request, Sampling
from actscope.errors import EngineError, ProbeError
from actscope.frames import SCORES, Frame, SinkStats, Step
from actscope.probes.labels import LabelledText
from actscope.sites import Site


@dataclass(slots=True)
class LabelledRows:
    """Rows of labelled texts, in the order of the texts. Special tokens have no row.

    Attributes:
        rows: For each site, float32 [n, d].
        texts: Index of each row's text, int64 [n].
        offsets: Character range of each row's token in its text, int64 [n, 2].
    """

    rows: dict[str, np.ndarray]
    texts: np.ndarray
    offsets: np.ndarray

    def labels(self, texts: Sequence[LabelledText], label: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (mask, labels), both bool [n]: whether the row's text is annotated for the label, and whether that holds."""
        known = np.array([label in text.spans for text in texts], bool)
        held = np.zeros(len(self.texts), bool)
        edges = np.searchsorted(self.texts, np.arange(len(texts) + 1))
        for index in np.flatnonzero(known).tolist():
            own = slice(edges[index], edges[index + 1])
            held[own] = texts[index].token_labels(label, self.offsets[own])
        return known[self.texts], held


@dataclass(slots=True)
class _Collector:
    """A sink that keeps the rows of each text's tokens, without special ones."""

    tokens: list[tuple[list[int], list[tuple[int, int]]]]
    special: frozenset[int]
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    texts: list[np.ndarray] = field(default_factory=list)
    offsets: list[np.ndarray] = field(default_factory=list)
    n: int = 0

    def write(self, step: Step, frames: list[Frame]) -> None:
        for span in step.spans:
            text = int(span.request)
            ids, offsets = self.tokens[text]
            positions = np.arange(span.first_position, min(span.first_position + span.n_rows, len(ids)))
            wanted = np.array([ids[p] not in self.special for p in positions], bool)
            if not wanted.any():
                continue
            self.n += int(wanted.sum())
            self.texts.append(np.full(int(wanted.sum()), text))
            self.offsets.append(np.array(offsets, np.int64).reshape(-1, 2)[positions[wanted]])
            for frame in frames:
                if frame.site != SCORES:
                    own = torch.as_tensor(frame.rows[span.offset : span.offset + len(positions)]).float().numpy()
                    self.rows.setdefault(frame.site, []).append(own[wanted])

    def stats(self) -> SinkStats:
        return SinkStats(rows=self.n)

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def result(self) -> LabelledRows:
        texts = np.concatenate(self.texts)
        order = np.argsort(texts, kind="stable")
        rows = {site: np.concatenate(parts)[order] for site, parts in self.rows.items()}
        return LabelledRows(rows, texts[order], np.concatenate(self.offsets)[order])


def tokens_of(loaded: LoadedModel, texts: Sequence[LabelledText]) -> LabelledRows:
    """Return what `collect` would, with no site: the texts and character ranges of all tokens. The model does not run."""
    special = frozenset(loaded.tokenizer.all_special_ids)
    found = [tokenize(loaded, text.text) for text in texts]
    kept = [[place for id, place in zip(ids, places, strict=True) if id not in special] for ids, places in found]
    counts = np.array([len(places) for places in kept], np.int64)
    flat = np.array([place for places in kept for place in places], np.int64).reshape(-1, 2)
    return LabelledRows({}, np.repeat(np.arange(len(texts)), counts), flat)


def collect(
    loaded: LoadedModel,
    texts: Sequence[LabelledText],
    sites: Sequence[Site],
    *,
    max_bytes: int = 1 << 30,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelledRows:
    """Run texts through the model once and collect their rows.

    Args:
        loaded: The model.
        texts: The texts.
        sites: The sites to collect.
        max_bytes: Maximum size of the rows, in bytes. Only the first texts that fit are run, but at least one.
        progress: Called with (texts done, texts in total).

    Returns:
        The rows at all sites.

    Raises:
        ProbeError: There is no text, or no text has a token that is not special.
        EngineError: The model failed on a text.
    """
    if not texts:
        raise ProbeError("there are no labelled texts: nothing can be trained")
    tokens = _fitting([tokenize(loaded, t.text) for t in texts], max_bytes // (4 * loaded.d_model * max(1, len(sites))))
    sink = _Collector(tokens, frozenset(loaded.tokenizer.all_special_ids))
    waiter = _Waiter(len(tokens), lambda done: progress(done, len(tokens)))
    engine = Engine(loaded, sink=sink, deliver=waiter.deliver).start()
    try:
        engine.keep_rows(sites).result()
        for index in sorted(range(len(tokens)), key=lambda i: len(tokens[i][0])):  # similar lengths: little padding
            waiter.room.acquire()
            engine.submit(Request(str(index), tokens[index][0], Sampling(max_tokens=1, temperature=0)))
        waiter.done.wait()
    finally:
        engine.close()
    if waiter.error is not None:
        raise EngineError(f"the model failed on a labelled text: {waiter.error}")
    if not sink.n:
        raise ProbeError("the labelled texts have no tokens but special ones: nothing can be trained")
    return sink.result()


Tokens = tuple[list[int], list[tuple[int, int]]]


def _fitting(tokens: Sequence[Tokens], limit: int) -> list[Tokens]:
    """Return the first texts with at most `limit` tokens in total. Taking a prefix does not favor short texts."""
    total = np.cumsum([len(ids) for ids, _ in tokens])
    return list(tokens[: max(1, int(np.searchsorted(total, limit, side="right")))])


class _Waiter:
    """Counts finished texts, and bounds the number of texts in flight by a semaphore."""

    def __init__(self, total: int, progress: Callable[[int], None]) -> None:
        self.done = threading.Event()
        self.room = threading.Semaphore(256)
        self.error: str | None = None
        self._left = total
        self._total = total
        self._progress = progress

    def deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.error = output.error or self.error
            self._left -= 1
            self.room.release()
        self._progress(self._total - self._left)
        if self._left <= 0:
            self.done.set()


def tokenize(loaded: LoadedModel, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a text, and truncate it to one token less than the model's context.

    The tokenizer's special tokens are added unless the text already begins with one.

    Returns:
        The token ids, and the character range of each token.
    """
    tokenizer = loaded.tokenizer
    rendered = text.startswith(tuple(tokenizer.all_special_tokens))
    encoded = tokenizer(
        text,
        return_offsets_mapping=True,
        add_special_tokens=not rendered,
        truncation=True,
        max_length=loaded.max_context - 1,
    )
    return encoded["input_ids"], encoded["offset_mapping"]
