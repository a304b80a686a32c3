"""What vLLM is compared with: transformers on the same files and the same ids, fp32, eager attention, one text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM


@cache
def load(path: Path) -> PreTrainedModel:
    """The model in fp32, ready to run; loaded once per path."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder blocks in order; block n's output is the residual stream after layer n."""
    decoder: Any = model.get_decoder() if hasattr(model.base_model, "layers") else model.base_model  # type: ignore[no-untyped-call]
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h
    return list(layers)


@torch.inference_mode()
def resid_post(path: Path, ids: Sequence[int]) -> np.ndarray:
    """fp32 [layers, n, d]: row [l, p] is the residual stream after block `l` at position `p`, from plain forward hooks."""
    model = load(path)
    rows: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        rows.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    hooks = [block.register_forward_hook(keep) for block in blocks(model)]
    try:
        model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(rows).numpy()


@torch.inference_mode()
def logits(path: Path, ids: Sequence[int]) -> Tensor:
    """fp32 [n, vocabulary]: row `p` predicts the token after position `p`."""
    out: Tensor = load(path)(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return out


def greedy(path: Path, prompt: Sequence[int], n: int) -> tuple[int, ...]:
    """The next `n` greedy tokens, the whole text run again for each: no cache can be wrong."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(logits(path, ids)[-1].argmax()))
    return tuple(ids[len(prompt) :])
