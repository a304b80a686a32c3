"""Token arrays for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerFast

from actscope.engines.builtin.text import generate
from actscope.engines.builtin.turns import END, ROLES


def texts(n: int, seed: int, split: str, kind: str = "mixed") -> list[str]:
    """Return `n` generated texts of one kind and split, reproducible from `seed`."""
    return [text.text for text in islice(generate(seed, kind, split), n)]


def tokens(tokenizer: PreTrainedTokenizerFast, n_texts: int, seed: int, split: str) -> np.ndarray:
    """Return the concatenated token ids of `n_texts` texts, as one uint16 array."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts(n_texts, seed, split), add_special_tokens=False)
    return np.concatenate([np.asarray(text.ids, dtype=np.uint16) for text in encoded])


class Emphasis:
    """Weights of the tokens in training.

    A user's words are hardly predictable and count a fifth. A rare token that recently occurred in the text counts four times:
    such tokens teach the model who and where a conversation is about, and since they are few, a plain mean learns that last.
    """

    USER, REPEATED, RARE, REACH = 0.2, 4.0, 0.004, 160

    def __init__(self, tokenizer: PreTrainedTokenizerFast, sample: np.ndarray) -> None:
        share = np.bincount(sample, minlength=len(tokenizer)) / len(sample)
        self._rare = share < self.RARE
        self._user, self._end = (tokenizer.convert_tokens_to_ids(name) for name in (ROLES["user"], END))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the weight of predicting each next token, float32 [n, length], for rows int64 [n, length + 1]."""
        weights = np.where(self._said_by_user(rows), self.USER, 1.0)
        weights = np.where(self._repeated(rows) & self._rare[rows], weights * self.REPEATED, weights)
        return weights[:, 1:].astype(np.float32)

    def _said_by_user(self, rows: np.ndarray) -> np.ndarray:
        places = np.arange(rows.shape[1])
        begun = np.maximum.accumulate(np.where(rows == self._user, places, -1), axis=1)
        ended = np.maximum.accumulate(np.where(rows == self._end, places, -1), axis=1)
        return np.asarray((begun > ended) & (begun < places))

    def _repeated(self, rows: np.ndarray) -> np.ndarray:
        found = np.zeros(rows.shape, bool)
        for back in range(1, min(self.REACH, rows.shape[1])):
            found[:, back:] |= rows[:, back:] == rows[:, :-back]
        return found


class TokenRows:
    """Batches of training rows from a never-ending stream of new texts. The same seed gives the same batches.

    A row starts at the start of a text, as a prompt does. Every eighth starts where the row before it ended, as a bare
    completion may. Otherwise the rest of a text that a row cuts off is skipped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, texts_per_shard: int = 40_000) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._texts_per_shard = texts_per_shard
        self._begin = tokenizer.bos_token_id
        self._rows = self._drawn()

    def batch(self, n_rows: int, length: int) -> np.ndarray:
        """Return int64 [n_rows, length + 1]: the inputs and, shifted by one, their targets."""
        self._length = length
        return np.stack(list(islice(self._rows, n_rows))).astype(np.int64)

    def _drawn(self) -> Iterator[np.ndarray]:
        shard = 0
        while True:
            ids = tokens(self._tokenizer, self._texts_per_shard, self._seed * 1_000_000 + shard, "train")
            starts = np.flatnonzero(ids == self._begin)
            yield from self._cut(ids, starts)
            shard += 1

    def _cut(self, ids: np.ndarray, starts: np.ndarray) -> Iterator[np.ndarray]:
        at, n = 0, 0
        while at + self._length < len(ids):
            yield ids[at : at + self._length + 1]
            n += 1
            at += self._length
            if n % 8:
                after = np.searchsorted(starts, at)
                at = int(starts[after]) if after < len(starts) else len(ids)
