"""What a feed over the first texts of the built-in dataset must give: transformers' own hidden states, each text run alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actscope.engines.hf.loading import load
from actscope.extraction.contract import ROW_LABEL
from actscope.extraction.cutting import Cutter
from actscope.extraction.texts import open_texts


@dataclass(frozen=True)
class Known:
    """labels ROW_LABEL [n], sorted; values float32 [n, layers, d]."""

    labels: np.ndarray
    values: np.ndarray

    def index(self, labels: np.ndarray) -> np.ndarray:
        """Where these labels' rows are; they must be known."""
        own, asked = _keys(self.labels), _keys(labels)
        found = np.searchsorted(own, asked)
        assert (own[np.minimum(found, len(own) - 1)] == asked).all(), "a row that is none of the dataset's"
        assert (self.labels["token_id"][found] == labels["token_id"]).all(), (
            "a row with another token than its position has"
        )
        return found

    def check(self, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """That these rows [n, layers, d] are the model's own, within 1e-4 of their norms; where they are."""
        found = self.index(labels)
        expected = self.values[found]
        scale = np.linalg.norm(expected, axis=-1, keepdims=True)
        assert (np.abs(values - expected) / scale).max(initial=0) < 1e-4, "a row that is not what the model computes"
        return found


def _keys(labels: np.ndarray) -> np.ndarray:
    """One number for each place: texts and pieces of the tests are few and short."""
    texts, pieces = labels["text"] << np.uint64(32), labels["piece"].astype(np.uint64) << np.uint64(16)
    found: np.ndarray = texts | pieces | labels["position"]
    return found


def known(texts: int, context: int, layers: Sequence[int]) -> Known:
    """The rows of `resid_post` of these layers, special tokens left out."""
    torch.set_num_threads(1)  # two threads of a small model get in each other's way where other processes run
    loaded = load("actscope/builtin")
    found = open_texts("builtin", n=texts)
    pieces = Cutter(loaded.tokenizer, context=context, mask="special").cut(range(texts), found.read(range(texts)))
    labels, values = [], []
    for piece in pieces:
        with torch.inference_mode():
            out = loaded.model(torch.from_numpy(piece.token_ids).long()[None], output_hidden_states=True)
        states = torch.stack([out.hidden_states[layer + 1][0] for layer in layers], dim=1).numpy()
        values.append(states[piece.wanted])
        labels.append(piece.labels())
    all_labels = np.concatenate(labels)
    order = np.argsort(_keys(all_labels), kind="stable")
    assert all_labels.dtype == ROW_LABEL
    return Known(all_labels[order], np.concatenate(values)[order])
