"""Left-padded batch with one growing key-value cache. Sequences join with their caches and leave at any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from actscope.engines.hf.request import Request
from actscope.engines.hf.sampling import Sampler
from actscope.engines.hf.text import Detokenizer
from actscope.taps.attribution import PaddedSequence
from actscope.taps.text_model import input_device


@dataclass(slots=True)
class Running:
    """A running request. `next_id` is the sampled token that the next pass feeds back."""

    request: Request
    sampler: Sampler
    text: Detokenizer
    next_id: int = -1

    @property
    def n_prompt(self) -> int:
        """Return the number of prompt tokens."""
        return len(self.request.prompt_ids)


@dataclass(slots=True)
class SequenceBatch:
    """Sequences whose caches are aligned on the right. Column c of sequence b is position `c - padding[b]`."""

    sequences: list[Running] = field(default_factory=list)
    padding: list[int] = field(default_factory=list)
    width: int = 0  # columns in the cache
    cache: DynamicCache = field(default_factory=DynamicCache)

    def lanes(self) -> list[PaddedSequence]:
        """Return the request id, padding and prompt length of every sequence, in the order of the batch."""
        return [
            PaddedSequence(s.request.id, pad, s.n_prompt) for s, pad in zip(self.sequences, self.padding, strict=True)
        ]

    def forward(self, model: nn.Module, token_ids: np.ndarray, **options: int) -> Tensor:
        """Run the next n columns, `token_ids` int64 [batch, n]. Returns the last column's logits [batch, vocabulary]."""
        device = next(model.parameters()).device
        if device.type == "meta":  # offloaded
            device = input_device(model)
        padding = torch.tensor(self.padding, device=device)[:, None]
        columns = torch.arange(self.width + token_ids.shape[1], device=device)[None]
        out = model(
            input_ids=torch.from_numpy(token_ids).to(device),
            attention_mask=(columns >= padding).long(),
            position_ids=(columns[:, self.width :] - padding).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        self.width += token_ids.shape[1]
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def keep(self, indices: Sequence[int]) -> int:
        """Keep only these sequences, in this order, and drop cached columns that are padding for all. Returns their number."""
        self.sequences = [self.sequences[i] for i in indices]
        self.padding = [self.padding[i] for i in indices]
        if not indices:
            self.width, self.cache = 0, DynamicCache()
            return 0
        common = min(self.width, *self.padding)
        for layer in _layers(self.cache):
            chosen = torch.tensor(indices, device=layer.device)
            layer.keys = _known(layer.keys).index_select(0, chosen)[:, :, common:]
            layer.values = _known(layer.values).index_select(0, chosen)[:, :, common:]
        self.padding = [pad - common for pad in self.padding]
        self.width -= common
        return common

    def join(self, other: SequenceBatch) -> None:
        """Take over the sequences and the cache of `other`, which must not be used afterwards."""
        if not self.sequences:
            self.sequences, self.padding, self.width, self.cache = (
                other.sequences, other.padding, other.width, other.cache,
            )  # fmt: skip
            return
        width = max(self.width, other.width)
        for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True):
            mine.keys = torch.cat([_widen(_known(mine.keys), width), _widen(_known(theirs.keys), width)])
            mine.values = torch.cat([_widen(_known(mine.values), width), _widen(_known(theirs.values), width)])
        self.padding = [p + width - self.width for p in self.padding] + [p + width - other.width for p in other.padding]
        self.sequences += other.sequences
        self.width = width


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    """Return the cache's layers, all of them plain growing ones: the loader refuses models with any other state."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    assert len(layers) == len(cache.layers)
    return layers


def _known(cached: Tensor | None) -> Tensor:
    assert cached is not None, "a layer that has run has a cache"
    return cached


def _widen(cached: Tensor, width: int) -> Tensor:
    """Pad `cached` [batch, heads, columns, d] with zeros on the left to `width` columns."""
    return nn.functional.pad(cached, (0, 0, width - cached.shape[2], 0))


def padded_prompts(sequences: Sequence[Running], pad_id: int) -> tuple[np.ndarray, list[int]]:
    """Return the prompts, int64 [batch, longest], padded on the left, and the padding of each."""
    width = max(s.n_prompt for s in sequences)
    ids = np.full((len(sequences), width), pad_id, np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[width - sequence.n_prompt :] = sequence.request.prompt_ids
    return ids, [width - s.n_prompt for s in sequences]
