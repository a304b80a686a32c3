"""Tiny random models of four architectures, and a tokenizer for them; made in memory, seeded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from actscope.engines.hf.loading import LoadedModel, adopt

VOCABULARY = 258
ARCHITECTURES = ("llama", "gpt2", "qwen2", "gemma2")
_SMALL: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=256, eos_token_id=257,
)  # fmt: skip


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens, BOS 256, EOS 257, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
    fast.chat_template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return fast


def tiny(architecture: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A seeded random model of 4 layers and width 64."""
    torch.manual_seed(0)
    model: Any  # its `to` is typed without arguments
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**_SMALL))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**_SMALL))
    elif architecture == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**_SMALL, head_dim=16, sliding_window=16))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=64,
                n_layer=4,
                n_head=4,
                n_positions=512,
                bos_token_id=256,
                eos_token_id=257,
            )
        )
    return adopt(model.to(dtype), byte_tokenizer(), name=f"tiny/{architecture}")
