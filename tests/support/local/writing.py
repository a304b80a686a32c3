"""GGUF files of tiny Llamas, written by the package `gguf` as llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

#: 256 bytes, then four special tokens, then what the merges make.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
MERGES = ["h e", "l l", "he ll", "1 2", "Ġ 1"]
TOKENS = [*ALPHABET, *SPECIAL, *(merge.replace(" ", "") for merge in MERGES)]
TYPES = [1] * 256 + [3] * 4 + [1] * len(MERGES)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QUANTIZED = gguf.GGMLQuantizationType.Q8_0


def tiny_llama(tied: bool = True) -> LlamaForCausalLM:
    """Three blocks of width 64, with random norms, so that a norm in the wrong place shows."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        )
    )  # fmt: skip
    for name, weights in model.named_parameters():
        if "norm" in name:
            weights.data.uniform_(0.5, 1.5)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    quantized: bool = False,
    cut: str = "smollm",
    blocks: int | None = None,
) -> Path:
    """Write a model to a file.

    change: Changes the tensors before they are written. more: Writes further keys. quantized: The matrices become Q8_0.
    """
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers if blocks is None else blocks)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(50_000.0)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, cut)
    more(writer)
    tensors = tensors_of(model)
    change(tensors)
    for name, values in tensors.items():
        if quantized and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, quantize(values, QUANTIZED), raw_dtype=QUANTIZED)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, cut: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The tensors under llama.cpp's names. Rows of queries and keys lie in its order: pairs of a rotation side by side."""
    config, state = model.config, {name: values.numpy() for name, values in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        for ours, theirs in parts.items():
            values = state[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(ours)
            if heads:
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            found[f"blk.{layer}.{ours}.weight"] = np.ascontiguousarray(values)
    return found
