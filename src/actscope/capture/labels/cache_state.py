"""What a cache or a recurrent state tells of the columns that have run over it.

    attention layers       their length, in columns
    recurrent layers       nothing; only whether they have run
    other states           nothing: RWKV's list of tensors, the cache of xLSTM

A cache that mixes the kinds tells by its attention layers. One that tells nothing is known only while every pass over it is
observed: the capture counts the columns, and a sample of the state shows whether it has changed in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

#: Arguments of forward that hold a cache or a state, and fields of its output that return it.
CACHE_NAMES = ("past_key_values", "cache_params", "state")

_SAMPLE = 256
"""Elements of a tensor in a sample, from its end."""


@dataclass(frozen=True, slots=True)
class CacheState:
    """What a cache tells."""

    columns: int | None
    """Number of columns in it; None if it has a state that does not tell."""
    recurrent: bool = False
    """Whether it has no attention layers. The model then takes masks of the new columns alone."""
    fixed_size: bool = False
    """Whether its size is fixed. Masks may then cover columns that have not run yet."""
    certain: bool = True
    """Whether `columns` 0 means that no pass has run. A cache of an unknown class may not count what it holds."""


def state_of(cache: object) -> CacheState | None:
    """Return what a cache tells; None if it is no known kind of cache. An absent cache is empty."""
    if cache is None:
        return CacheState(0)
    if isinstance(cache, list) and cache and all(isinstance(part, Tensor) for part in cache):
        return CacheState(None, recurrent=True)  # RWKV
    cache = getattr(cache, "self_attention_cache", cache)  # of an encoder-decoder
    length = _length(cache)
    if isinstance(layers := getattr(cache, "layers", None), Sequence):
        return _state_of_layers(cache, layers, length or 0)
    if length is not None:
        return CacheState(length, certain=False)
    if isinstance(getattr(cache, "rnn_state", None), Mapping):  # xLSTM
        return CacheState(None if int(getattr(cache, "seqlen_offset", 1)) else 0, recurrent=True)
    return None


def _state_of_layers(cache: object, layers: Sequence[object], length: int) -> CacheState:
    """Return what a cache of layers tells. `length` is its own answer, of its first layer as a rule."""
    fixed_size = bool(getattr(cache, "is_compileable", False))
    if length:
        return CacheState(length, False, fixed_size)
    attention = [layer for layer in layers if hasattr(layer, "get_seq_length")]
    lengths = {_length(layer) or 0 for layer in attention} - {0}
    if len(lengths) == 1:
        return CacheState(lengths.pop(), False, fixed_size)
    ran = bool(lengths) or any(map(_has_state, layers)) or bool(_tensors(getattr(cache, "linear_cache", None)))
    return CacheState(None if ran else 0, not attention, fixed_size and bool(attention))


def _has_state(layer: object) -> bool:
    """Return whether a layer that does not tell a length has run since it was made or reset."""
    if hasattr(layer, "get_seq_length") and not hasattr(layer, "has_previous_state"):
        return False
    ran = getattr(layer, "has_previous_state", None)
    return any(ran.values()) if isinstance(ran, Mapping) else bool(_tensors(vars(layer)))


def _length(cache: object) -> int | None:
    """Return what a cache or layer answers for its length; None if it does not answer."""
    try:
        return int(cache.get_seq_length())  # type: ignore[attr-defined]
    except (AttributeError, ValueError, TypeError, NotImplementedError, IndexError):
        return None


def anchor_of(cache: object) -> object:
    """Return the object that identifies a cache. A list, as RWKV's state is, is identified by its first tensor."""
    return cache[0] if isinstance(cache, list) and cache else cache


def cache_in(output: object) -> object:
    """Return the cache or state in a model's output, or None."""
    parts = output if isinstance(output, tuple) else [getattr(output, name, None) for name in CACHE_NAMES]
    return next((part for part in parts if _is_cache(part)), None)


def _is_cache(value: object) -> bool:
    return value is not None and not isinstance(value, Tensor) and state_of(value) is not None


@dataclass(frozen=True, slots=True, eq=False)
class StateSample:
    """A few elements of a state's tensors, and their version counters, to see whether the state has changed."""

    values: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def equals(self, other: StateSample) -> bool:
        """Return whether both were taken of an unchanged state."""
        return (
            self.versions == other.versions
            and len(self.values) == len(other.values)
            and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(self.values, other.values, strict=True))
        )


def sample_of(cache: object) -> StateSample:
    """Return a sample of the first and last of a state's tensors. Waits for the device."""
    tensors = _state_tensors(cache)
    chosen = [*tensors[:2], *tensors[-2:]]
    return StateSample(
        tuple(tensor.detach().reshape(-1)[-_SAMPLE:].to("cpu", copy=True) for tensor in chosen),
        tuple(tensor._version for tensor in chosen if not tensor.is_inference()),
    )


def _state_tensors(cache: object) -> list[Tensor]:
    layers = getattr(cache, "layers", None)
    if isinstance(layers, Sequence) and layers:
        return [tensor for layer in layers for tensor in _tensors(vars(layer))]
    return _tensors(getattr(cache, "rnn_state", cache))


def _tensors(value: object) -> list[Tensor]:
    return list(islice(_walk(value, 3), 1024))


def _walk(value: object, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.numel():
            yield value
    elif depth and isinstance(value, (Mapping, list, tuple)):
        parts: Iterable[object] = value.values() if isinstance(value, Mapping) else value
        for part in parts:
            yield from _walk(part, depth - 1)
