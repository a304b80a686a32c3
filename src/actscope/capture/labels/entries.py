"""Entries: the modules of a model of which each pass is one batch of tokens, and the parts that run within such a pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from actscope.capture.labels.forward_inputs import ForwardInputs, Signature, same_columns, tokens_of
from actscope.taps.anatomy import Location


def entries_of(model: nn.Module, places: Iterable[Location]) -> dict[nn.Module, Signature]:
    """Return the modules of which each pass is one batch of tokens, with their signatures.

    If some of them hold a place to read, the others are left out: the encoder, where only the decoder is read.
    """
    found = {m: s for m in model.modules() if (s := _entry_signature(m, model)) is not None}
    holding = {entry: signature for entry, signature in found.items() if numbers_in(entry, places)}
    return holding or found


def numbers_in(entry: nn.Module, places: Iterable[Location]) -> tuple[int, ...]:
    """Return the numbers of the places that lie in a module."""
    inside = {id(module) for module in entry.modules()}
    return tuple(number for number, place in enumerate(places) if id(place.module) in inside)


def _entry_signature(module: nn.Module, model: nn.Module) -> Signature | None:
    """Return the signature of a module if each of its passes is one batch of tokens, else None.

    Such a module takes `input_ids`, and is no encoder-decoder. A part of the model must also take `attention_mask`, which
    excludes embeddings.
    """
    try:
        signature = Signature(module)
    except (TypeError, ValueError):  # a forward without an inspectable signature
        return None
    both = "decoder_input_ids" in signature.names
    if both and getattr(getattr(module, "config", None), "is_encoder_decoder", True):
        return None
    fits = module is model or "attention_mask" in signature.names
    return signature if signature.takes_tokens and fits else None


def keeps_state(module: nn.Module) -> bool:
    """Return whether a model of transformers keeps a recurrent state. Without a parameter for it, the state is in its modules."""
    return bool(getattr(module, "_is_stateful", False))


def same_inputs(
    inputs: ForwardInputs, signature: Signature, args: tuple[object, ...], kwargs: dict[str, object]
) -> bool:
    """Return whether a part of the model is called with the columns of the pass."""
    arguments = signature.named(args, kwargs)
    return _same_tokens(inputs, tokens_of(arguments)) and same_columns(inputs, arguments, signature.takes_cache)


def _same_tokens(inputs: ForwardInputs, tensor: Tensor | None) -> bool:
    """Return whether these are the tokens of the pass, or embeddings of the same [batch, columns]."""
    if tensor is None or tensor.shape[:2] != inputs.tensor.shape[:2]:
        return False
    if tensor is inputs.tensor or tensor.ndim == 3 or inputs.tensor.ndim == 3:
        return True
    return bool(torch.equal(tensor.to(inputs.tensor.device), inputs.tensor))
