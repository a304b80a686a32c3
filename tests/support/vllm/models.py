"""Small random models on disk, as vLLM and transformers both load them; the same files for the same name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from actscope.engines.builtin import labelled

VOCABULARY = 1000
LAYERS = 4
WIDTH = 128
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
#: vLLM's attention on CPU takes heads of 32 and up. Weights are drawn wide, so that greedy tokens differ and are no near ties.
_SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=192, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    initializer_range=0.15,
)  # fmt: skip
_GPT2: dict[str, Any] = dict(
    vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=1024, bos_token_id=0, eos_token_id=1,
    pad_token_id=1, initializer_range=0.15,
)  # fmt: skip
CONFIGURATIONS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_SIZES),
    "gemma2": lambda: Gemma2Config(**_SIZES, sliding_window=64, query_pre_attn_scalar=32),
    "gpt2": lambda: GPT2Config(**_GPT2),
}


def make_model(name: str, directory: Path) -> Path:
    """`directory/name` with config, fp32 weights, tokenizer and chat template; made when it is not there yet."""
    path = directory / name
    if not (path / "tokenizer.json").exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGURATIONS[name]()).float()  # type: ignore[no-untyped-call]
        if (
            name == "gemma2"
        ):  # its embeddings are also its head, and scaled up: as drawn, a token only ever chose itself
            model.get_input_embeddings().weight.data.mul_(0.2)
        model.save_pretrained(path)
        make_tokenizer().save_pretrained(path)
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens trained on the built-in text; `<s>` is 0 and `</s>` is 1."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.text for text in labelled(300)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")  # type: ignore[no-untyped-call]
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_adapter(directory: Path, rank: int = 8) -> Path:
    """A LoRA adapter for the Llama model that changes its tokens, in PEFT's files."""
    path = directory / "adapter"
    path.mkdir(parents=True, exist_ok=True)
    adapted = {"r": rank, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA", "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(adapted))
    draw = torch.Generator().manual_seed(1)
    widths = {"q_proj": WIDTH, "v_proj": WIDTH // 2}
    tensors = {}
    for layer in range(LAYERS):
        for module, out in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=draw) * 0.1
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=draw) * 0.1
    save_file(tensors, path / "adapter_model.safetensors")
    return path
