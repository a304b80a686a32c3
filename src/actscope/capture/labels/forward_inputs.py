"""Inputs of a forward pass that determine its labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import AmbiguousLabels
from actscope.capture.labels.cache_state import CACHE_NAMES, CacheState, state_of
from actscope.capture.labels.generate_calls import Prepared

#: Arguments that hold a state of which neither the length nor the sequences can be told.
_STATES = ("mems", "past_buckets_states", "inference_params")
#: Arguments that hold a cache, or a start position in one, under names that transformers does not use.
_FOREIGN = ("past", "layer_past", "cache", "caches", "kv_cache", "kv_caches", "start_pos", "input_pos")
#: Arguments that indicate packed rows: several sequences in one row.
_PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """Inputs of one pass over `columns` new columns of `lanes` sequences, with `past` columns in the cache."""

    lanes: int
    columns: int
    past: int
    tensor: Tensor
    """input_ids or inputs_embeds. Nested calls of the model's parts must match it."""
    ids: np.ndarray | None
    """int64 [lanes, columns]; None if only embeddings were given."""
    mask: np.ndarray | None
    """bool [lanes, past + columns], or [lanes, columns] for a model without attention: True for real tokens; None if all are."""
    positions: np.ndarray | None
    cache: object
    """The key-value cache or recurrent state as passed by the caller; None if there is none."""
    given_mask: object = None
    """The attention mask as passed by the caller."""

    @property
    def real(self) -> np.ndarray:
        """Return bool [lanes, columns]: True for columns of this pass that are tokens, not padding."""
        if self.mask is None:
            return np.ones((self.lanes, self.columns), bool)
        return self.mask[:, -self.columns :]

    @property
    def past_mask(self) -> np.ndarray | None:
        """Return bool [lanes, past]: True for cached columns that are tokens. None if the mask does not say."""
        if self.mask is None or self.mask.shape[1] != self.past + self.columns:
            return None
        return self.mask[:, : self.past]


class Signature:
    """Parameter names of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters.values()
        self.names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @property
    def takes_tokens(self) -> bool:
        """Whether forward has a parameter `input_ids`."""
        return "input_ids" in self.names

    @property
    def takes_cache(self) -> bool:
        """Whether forward has a parameter for a cache or state."""
        return any(name in self.names for name in CACHE_NAMES)

    def named(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Return all arguments by parameter name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


def read(
    arguments: Mapping[str, object],
    columns_in: Callable[[object, CacheState], int],
    prepared: Prepared | None = None,
) -> ForwardInputs:
    """Read the arguments of a model's forward.

    Args:
        arguments: The arguments, by parameter name.
        columns_in: Returns the number of columns in a cache, given what the cache tells itself.
        prepared: What `generate` prepared for a pass, which may be another one.

    Raises:
        AmbiguousLabels: The arguments do not determine exact labels.
    """
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
    positions = arguments.get("position_ids") if columns > 1 else None
    if positions is not None and not isinstance(positions, Tensor):
        raise AmbiguousLabels(doubt.INPUT_FORM)
    cache = _cache_of(arguments)
    state = state_of(cache)
    if state is None:
        raise AmbiguousLabels(doubt.FOREIGN_CACHE)
    past = columns_in(cache, state)
    _check_cache_position(arguments.get("cache_position"), cache, past)
    given = arguments.get("attention_mask")
    if prepared is not None and prepared.tensor is not tensor:
        prepared = None
    ids = prepared.ids if prepared is not None and prepared.ids is not None else tensor
    own = prepared is None or (isinstance(given, Tensor) and given.ndim == 2)
    return ForwardInputs(
        lanes,
        columns,
        past,
        tensor,
        _numpy(ids) if ids.ndim == 2 else None,
        _mask(given if own or prepared is None else prepared.mask, (lanes, past, columns), state),
        _numpy(positions) if positions is not None else None,
        cache,
        given,
    )


def same_columns(inputs: ForwardInputs, arguments: Mapping[str, object], takes_cache: bool) -> bool:
    """Return whether a part of the model has the pass's cache length and mask, as far as its arguments show.

    A model may keep its own cache or build its own mask. Its arguments then differ from those of its parts.
    """
    cache = _cache_of(arguments)
    state = state_of(cache)
    if takes_cache and cache is not inputs.cache and (state is None or state.columns != inputs.past):
        return False
    mask = arguments.get("attention_mask")
    if mask is inputs.given_mask or not isinstance(mask, Tensor) or mask.ndim != 2:
        return True
    try:
        real = _mask(mask, (inputs.lanes, inputs.past, inputs.columns), state or CacheState(inputs.past))
    except AmbiguousLabels:
        return False
    assert real is not None
    if inputs.mask is None:
        return bool(real.all())
    width = min(real.shape[1], inputs.mask.shape[1])
    return np.array_equal(inputs.mask[:, -width:], real[:, -width:])


def _cache_of(arguments: Mapping[str, object]) -> object:
    """Return the cache or state in the arguments of forward, or None."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def _check_cache_position(given: object, cache: object, past: int) -> None:
    """Raise AmbiguousLabels unless `cache_position`, which models outside transformers may take, begins behind the cache."""
    if isinstance(given, Tensor) and given.numel() and int(given.reshape(-1)[0]) != past:
        raise AmbiguousLabels(doubt.FOREIGN_CACHE if cache is None else doubt.POSITIONS)


def _says_something(value: object) -> bool:
    """Return whether an argument is set: not None, False or 0."""
    return value is not None and not (isinstance(value, int) and not value)


def tokens_of(arguments: Mapping[str, object]) -> Tensor | None:
    """Return input_ids [lanes, columns], or else inputs_embeds [lanes, columns, d]; None if neither has that form."""
    for name, dimensions in (("input_ids", 2), ("inputs_embeds", 3)):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            return value if value.ndim == dimensions and value.numel() else None
    return None


def check_positions(positions: np.ndarray | None, real: np.ndarray, counted: np.ndarray) -> None:
    """Raise AmbiguousLabels unless position ids equal the counted positions of real tokens, up to a constant per lane.

    Three-dimensional ids (time, height and width of multimodal models) may repeat and jump, but not decrease.

    Args:
        positions: Position ids [lanes, columns] or [3, lanes, columns]; None skips the check.
        real: bool [lanes, columns].
        counted: int64 [lanes, columns].
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


def _mask(mask: object, shape: tuple[int, int, int], state: CacheState) -> np.ndarray | None:
    """Return a mask as `ForwardInputs.mask`. `shape` is (lanes, past, columns). Raises AmbiguousLabels if it has another form."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise AmbiguousLabels(doubt.MASK_FORM)
    lanes, past, columns = shape
    if state.fixed_size and mask.shape[1] > past + columns:
        mask = mask[:, : past + columns]
    widths = (past + columns, columns) if state.recurrent else (past + columns,)
    if mask.shape[0] != lanes or mask.shape[1] not in widths:
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
