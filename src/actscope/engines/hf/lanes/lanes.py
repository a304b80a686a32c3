"""Lanes: a batch of sequences with their caches and recurrent states, aligned on the right. Sequences join and leave at any step.

attention layers       keys and values, [lanes, heads, columns, d]: padded on the left to the widest lane, and masked there
recurrent layers       states [lanes, ...] without columns: a lane has nothing to pad, but its prompt must run unpadded
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)

from actscope.taps.text_model import input_device

#: Arguments of forward that hold a cache or state, and fields of its output that return it.
CACHE_NAMES = ("past_key_values", "cache_params", "state")

#: How sequences share passes: prompts padded on the left; prompts alone, and decoding together; every sequence by itself.
Batching = Literal["padded", "joined", "alone"]


#: Kinds of layers whose caches can be aligned with those of other lanes.
_KNOWN = {"full_attention", "sliding_attention", "linear_attention", "conv", "hybrid", "hybrid_sliding", "moe", "mlp"}


@dataclass(frozen=True, slots=True)
class Calls:
    """How the engine calls a model.

    Attributes:
        batching: How sequences share a pass.
        chunks: Whether a prompt may run in several passes.
        cache_name: Name under which forward takes and returns its cache or state.
        takes_positions: Whether forward takes `position_ids`.
        takes_mask: Whether a mask of all columns is passed. A model without attention layers gets none.
        new_cache: Makes the cache of a new batch; None if the model makes its own.
    """

    batching: Batching = "padded"
    chunks: bool = True
    cache_name: str = "past_key_values"
    takes_positions: bool = True
    takes_mask: bool = True
    new_cache: Callable[[], object] | None = DynamicCache


def calls_of(model: PreTrainedModel, config: PreTrainedConfig, *, recurrent: bool) -> Calls:
    """Return how to call a model, as its signature and its configuration say. `recurrent`: it has layers with a state."""
    names = inspect.signature(model.forward).parameters
    cache_name = next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])
    kinds = set(getattr(config, "layer_types", None) or ())
    attends = cache_name == CACHE_NAMES[0] and (not kinds or bool(kinds - {"linear_attention", "conv"}))
    new_cache: Callable[[], object] | None = DynamicCache
    if recurrent:  # layers that are not plain attention have to be of their own class from the first pass on
        new_cache = (lambda: _mixed_cache(config)) if kinds and cache_name == CACHE_NAMES[0] else None
    batching: Batching = "joined" if recurrent else "padded"
    if recurrent and kinds - _KNOWN:  # as `generate` runs it: how such layers take padding is not known
        batching, new_cache = "alone", None
    return Calls(batching, True, cache_name, "position_ids" in names, attends or not recurrent, new_cache)


def _mixed_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return a cache for attention and recurrent layers in which all attention layers keep all columns.

    A layer that keeps only a sliding window cannot be aligned with other lanes. The mask still limits what is attended to.
    """
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer):
            cache.layers[i] = LinearAttentionAndFullAttentionLayer(layer.number_of_states)
        elif isinstance(layer, DynamicSlidingWindowLayer):
            cache.layers[i] = DynamicLayer()  # type: ignore[no-untyped-call]
    return cache


@dataclass(slots=True)
class Lanes:
    """Caches of sequences, aligned on the right. Column c of lane b is position `c - padding[b]`."""

    padding: list[int] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)
    width: int = 0  # columns in the cache
    cache: object = None

    def forward(self, model: nn.Module, token_ids: np.ndarray, **options: int) -> Tensor:
        """Run the next n columns, `token_ids` int64 [lanes, n]. Returns their logits [lanes, n or 1, vocabulary]."""
        device, calls = input_device(model), self.calls
        padding = torch.tensor(self.padding, device=device)[:, None]
        columns = torch.arange(self.width + token_ids.shape[1], device=device)[None]
        if self.cache is None and calls.new_cache is not None:
            self.cache = calls.new_cache()
        arguments: dict[str, object] = {calls.cache_name: self.cache, "use_cache": True, **options}
        if calls.takes_mask:
            arguments["attention_mask"] = (columns >= padding).long()
        if calls.takes_positions:
            arguments["position_ids"] = (columns[:, self.width :] - padding).clamp(min=0)
        out = model(input_ids=torch.from_numpy(token_ids).to(device), **arguments)
        self.cache = getattr(out, calls.cache_name)
        self.width += token_ids.shape[1]
        return out.logits  # type: ignore[no-any-return]

    def select(self, lanes: Sequence[int]) -> int:
        """Keep only these lanes, in this order, and drop cached columns that are padding for all. Returns their number."""
        self.padding = [self.padding[i] for i in lanes]
        if not lanes:
            self.width, self.cache = 0, None
            return 0
        common = min(self.width, *self.padding)
        if self.cache is not None:
            self.cache = _mapped(self.cache, _Selection(lanes, common))
        self.padding = [pad - common for pad in self.padding]
        self.width -= common
        return common

    def extend(self, other: Lanes) -> None:
        """Take over the lanes of `other`, which must not be used afterwards."""
        if not self.padding:
            self.padding, self.width, self.cache = other.padding, other.width, other.cache
            return
        width = max(self.width, other.width)
        self.cache = _mapped(self.cache, _Union(other.cache, width))
        self.padding = [p + width - self.width for p in self.padding] + [p + width - other.width for p in other.padding]
        self.width = width


class _Change(Protocol):
    """A change of the lanes of a cache, tensor by tensor."""

    def keys(self, tensor: Tensor, path: tuple[object, ...]) -> Tensor:
        """Return keys or values [lanes, heads, columns, d] with the lanes changed."""

    def state(self, tensor: Tensor, path: tuple[object, ...]) -> Tensor:
        """Return a state [lanes, ...] with the lanes changed."""


@dataclass(frozen=True, slots=True)
class _Selection:
    """Keep some lanes, and all but the first `dropped` columns."""

    lanes: Sequence[int]
    dropped: int

    def keys(self, tensor: Tensor, path: tuple[object, ...]) -> Tensor:
        return self.state(tensor, path)[:, :, self.dropped :]

    def state(self, tensor: Tensor, path: tuple[object, ...]) -> Tensor:
        return tensor.index_select(0, torch.tensor(self.lanes, device=tensor.device))


@dataclass(frozen=True, slots=True)
class _Union:
    """Add the lanes of another cache, both padded on the left to `width` columns."""

    other: object
    width: int

    def keys(self, tensor: Tensor, path: tuple[object, ...]) -> Tensor:
        return torch.cat([_widen(tensor, self.width), _widen(_at(self.other, path), self.width)])

    def state(self, tensor: Tensor, path: tuple[object, ...]) -> Tensor:
        return torch.cat([tensor, _at(self.other, path)])


def _mapped(cache: object, change: _Change) -> object:
    """Apply a change to every tensor of a cache, in place where the cache is an object. Returns the cache."""
    if isinstance(cache, list):  # RWKV
        return _mapped_value(cache, change, ())
    for name in ("rnn_state", "linear_cache"):  # xLSTM, MiniMax
        if hasattr(cache, name):
            setattr(cache, name, _mapped_value(getattr(cache, name), change, (name,)))
    if isinstance(cache, Cache):
        for i, layer in enumerate(cache.layers):
            for name in ("keys", "values"):
                if isinstance(tensor := getattr(layer, name, None), Tensor):
                    setattr(layer, name, change.keys(tensor, ("layers", i, name)))
            for name in ("conv_states", "recurrent_states"):
                if hasattr(layer, name):
                    setattr(layer, name, _mapped_value(getattr(layer, name), change, ("layers", i, name)))
    return cache


def _mapped_value(value: object, change: _Change, path: tuple[object, ...]) -> object:
    """Return the same nested structure with its states changed."""
    if isinstance(value, Tensor):
        return change.state(value, path)
    if isinstance(value, Mapping):
        return {key: _mapped_value(part, change, (*path, key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped_value(part, change, (*path, i)) for i, part in enumerate(value))
    return value


def _at(cache: object, path: tuple[object, ...]) -> Tensor:
    """Return the tensor at a path of attribute names, keys and indices."""
    found = cache
    for step in path:
        found = getattr(found, step) if isinstance(step, str) else found[step]  # type: ignore[index]
    assert isinstance(found, Tensor), "two caches of one model have the same tensors"
    return found


def _widen(cached: Tensor, width: int) -> Tensor:
    """Pad `cached` [lanes, heads, columns, d] with zeros on the left to `width` columns."""
    return nn.functional.pad(cached, (0, 0, width - cached.shape[2], 0))
