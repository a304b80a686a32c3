"""What a forward pass is called with, as far as labels depend on it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import AmbiguousLabels

#: Arguments under which models keep state that is no key-value cache.
_STATES = ("cache_params", "state", "mems", "past_buckets_states", "inference_params")
#: ... and caches under names that transformers does not use, and where in them a pass begins.
_FOREIGN = ("past", "layer_past", "cache", "caches", "kv_cache", "kv_caches", "start_pos", "input_pos")
#: Arguments that say that rows are packed, one sequence after another.
_PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """One pass over `columns` new columns of `lanes` sequences, of which `past` columns lie in the cache."""

    lanes: int
    columns: int
    past: int
    tensor: Tensor
    """input_ids or inputs_embeds: what a part of the model must be called with to be the same pass."""
    ids: np.ndarray | None
    """int64 [lanes, columns]; None where only embeddings were given."""
    mask: np.ndarray | None
    """bool [lanes, past + columns], True for real tokens; None where all are."""
    positions: np.ndarray | None
    cache: Any
    given_mask: Any = None
    """The mask as it was given."""

    @property
    def real(self) -> np.ndarray:
        """bool [lanes, columns]: which of this pass's columns are tokens."""
        if self.mask is None:
            return np.ones((self.lanes, self.columns), bool)
        return self.mask[:, self.past :]


class Signature:
    """Puts names to the positional arguments of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters.values()
        self.names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @property
    def takes_tokens(self) -> bool:
        return "input_ids" in self.names

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


def read(arguments: Mapping[str, Any]) -> ForwardInputs:
    """What the arguments of a model's forward say. Raises AmbiguousLabels where that is not enough for exact labels."""
    tensor = tokens_of(arguments)
    if tensor is None:
        raise AmbiguousLabels(doubt.INPUT_FORM)
    if any(arguments.get(name) is not None for name in _PACKING):
        raise AmbiguousLabels(doubt.PACKED)
    if any(arguments.get(name) is not None for name in _STATES):
        raise AmbiguousLabels(doubt.STATE_CACHE)
    if any(_says_something(arguments.get(name)) for name in _FOREIGN):
        raise AmbiguousLabels(doubt.FOREIGN_CACHE)
    lanes, columns = tensor.shape[:2]
    cache = arguments.get("past_key_values")
    past = length_of(cache)
    return ForwardInputs(
        lanes,
        columns,
        past,
        tensor,
        _numpy(tensor) if tensor.ndim == 2 else None,
        _mask(arguments.get("attention_mask"), lanes, past + columns),
        _numpy(arguments["position_ids"]) if columns > 1 and arguments.get("position_ids") is not None else None,
        cache,
        arguments.get("attention_mask"),
    )


def same_columns(inputs: ForwardInputs, arguments: Mapping[str, Any], takes_cache: bool) -> bool:
    """Whether a part of the model goes on from the same column, and has the same columns masked, as far as it is told.

    A model may keep a cache of its own, or make a mask of its own: its arguments then do not say what its parts compute.
    """
    try:
        if takes_cache and length_of(arguments.get("past_key_values")) != inputs.past:
            return False
        mask = arguments.get("attention_mask")
        if mask is inputs.given_mask or not isinstance(mask, Tensor) or mask.ndim != 2:
            return True
        real = _mask(mask, inputs.lanes, inputs.past + inputs.columns)
    except AmbiguousLabels:
        return False
    assert real is not None
    return bool(real.all()) if inputs.mask is None else np.array_equal(inputs.mask, real)


def _says_something(value: Any) -> bool:
    """None, False and 0 do not."""
    return value is not None and not (isinstance(value, int) and not value)


def tokens_of(arguments: Mapping[str, Any]) -> Tensor | None:
    """input_ids [lanes, columns], else inputs_embeds [lanes, columns, d]; None where neither is one."""
    for name, dimensions in (("input_ids", 2), ("inputs_embeds", 3)):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            return value if value.ndim == dimensions and value.numel() else None
    return None


def length_of(cache: Any) -> int:
    """How many columns a cache holds. Raises AmbiguousLabels where it does not tell."""
    if cache is None:
        return 0
    if getattr(cache, "is_compileable", False):
        raise AmbiguousLabels(doubt.STATIC_CACHE)
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, TypeError):
        raise AmbiguousLabels(doubt.FOREIGN_CACHE) from None


def check_positions(positions: np.ndarray | None, real: np.ndarray, counted: np.ndarray) -> None:
    """Raise AmbiguousLabels unless position ids agree, but for a constant, with how the real tokens were counted.

    Three-dimensional ones (time, height and width of multimodal models) may repeat and jump, but not go back.
    """
    if positions is None:
        return
    if positions.ndim == 3:
        both = real[:, 1:] & real[:, :-1]
        fits = bool((~both | (np.diff(positions[0], axis=-1) >= 0)).all())
    elif positions.ndim > 3 or positions.shape[-1] != real.shape[1]:
        fits = False
    else:
        offsets = np.broadcast_to(positions, real.shape) - counted
        first = offsets[np.arange(len(real)), real.argmax(axis=1)]
        fits = bool((~real | (offsets == first[:, None])).all())
    if not fits:
        raise AmbiguousLabels(doubt.PACKED if _goes_back(positions, real) else doubt.POSITIONS)


def _goes_back(positions: np.ndarray, real: np.ndarray) -> bool:
    both = real[:, 1:] & real[:, :-1]
    flat = positions.reshape(-1, positions.shape[-1])
    return positions.shape[-1] == real.shape[1] and bool((both & (np.diff(flat[-len(real) :]) < 0)).any())


def _mask(mask: Any, lanes: int, columns: int) -> np.ndarray | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise AmbiguousLabels(doubt.MASK_FORM)
    if mask.shape != (lanes, columns):
        raise AmbiguousLabels(doubt.MASK_SHAPE)
    values = _numpy(mask)
    if values.dtype == bool:
        return values
    if values.max() > 1:  # some packers number the sequences of a row
        raise AmbiguousLabels(doubt.PACKED)
    if values.min() < 0:
        raise AmbiguousLabels(doubt.MASK_FORM)
    real: np.ndarray = values != 0
    return real


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    return array
