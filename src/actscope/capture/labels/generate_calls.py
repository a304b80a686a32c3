"""Wrappers of a model's `generate`, and of the method with which it prepares each pass, while a capture runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

#: Names under which `generate` passes tokens, embeddings and the 2-D mask on to forward.
_IDS = ("input_ids", "decoder_input_ids")
_MASKS = ("attention_mask", "decoder_attention_mask")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `generate` knows of the pass that it is about to run, in a form that forward may not get."""

    tensor: Tensor
    """The pass's input_ids or inputs_embeds. Identifies the pass."""
    mask: Tensor | None
    """The mask [lanes, past + columns] from which a mask of another form may have been made; None if there is none."""
    ids: Tensor | None
    """Token ids [lanes, columns] of a pass that is given embeddings: the ids of placeholders, for multimodal models."""


class Follower(Protocol):
    """The part of ForwardHooks that follows calls of `generate`."""

    def generation(
        self, entry: nn.Module, args: Sequence[object], kwargs: dict[str, object]
    ) -> AbstractContextManager[Callable[[object], bool]]:
        """Assign the passes in this context to one call of `generate`. Yields a function to call with its result."""

    def prepared(self, found: Prepared | None) -> None:
        """Note what `generate` prepared for the next pass."""


class GenerateCall:
    """Replacement of a model's `generate` while a capture runs."""

    def __init__(self, follower: Follower, entry: nn.Module, original: Callable[..., object]) -> None:
        functools.update_wrapper(self, original)
        self._follower, self._entry, self._original = follower, entry, original

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run `generate` as one scope."""
        with self._follower.generation(self._entry, args, kwargs) as settle:
            result = self._original(*args, **kwargs)
            settle(result)
            return result

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """Copy the original, so that a copy of the model uses its own weights."""
        return copy.deepcopy(self._original, memo)


class PrepareCall:
    """Replacement of a model's `prepare_inputs_for_generation` while a capture runs."""

    def __init__(self, follower: Follower, original: Callable[..., object]) -> None:
        functools.update_wrapper(self, original)
        self._follower, self._original = follower, original

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Prepare a pass, and pass on what is known of it."""
        result = self._original(*args, **kwargs)
        if isinstance(result, Mapping):
            ids = args[0] if args else kwargs.get("input_ids")
            self._follower.prepared(_prepared(ids, kwargs, result))
        return result

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """Copy the original, so that a copy of the model uses its own weights."""
        return copy.deepcopy(self._original, memo)


def _prepared(ids: object, kwargs: Mapping[str, object], result: Mapping[str, object]) -> Prepared | None:
    tensor = next((t for name in (*_IDS, "inputs_embeds") if isinstance(t := result.get(name), Tensor)), None)
    if tensor is None or tensor.ndim not in (2, 3):
        return None
    decoder = "decoder_input_ids" in result
    mask = kwargs.get(_MASKS[decoder])
    whole = tensor.ndim == 3 and isinstance(ids, Tensor) and ids.shape[:2] == tensor.shape[:2]
    return Prepared(
        tensor, mask if isinstance(mask, Tensor) else None, ids if whole and isinstance(ids, Tensor) else None
    )
