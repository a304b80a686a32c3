"""A tiny Llama whose weights need no random numbers, and pairs of contrasting texts: `tests/data/repeng-0.4.gguf` is of them."""

from __future__ import annotations

from itertools import product

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_LAYERS, WIDTH, VOCABULARY = 4, 16, 32


def tiny_llama() -> LlamaForCausalLM:
    """Four blocks of width 16. The n-th weight of a tensor is a sine of n, so that every version makes the same model."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (name, tensor) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (1.1 + 0.37 * number) + number)
            tensor.copy_((1 + 0.3 * wave if "norm" in name else 0.4 * wave).reshape(tensor.shape))
    model.train(False)
    return model


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of the words w1 to w31, padded with w0."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")  # type: ignore[no-untyped-call]
    return made


def pairs() -> list[tuple[str, str]]:
    """Positive and negative texts that differ in their first word."""
    return [(f"w1 w{a} w{b}", f"w2 w{a} w{b}") for a, b in product(range(3, 9), range(10, 14))]
