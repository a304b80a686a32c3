"""Small random models of many architectures, with norm weights and biases that are no identities."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from support.vllm.models import LAYERS, VOCABULARY, WIDTH
from transformers.models.auto import AutoModelForCausalLM

_SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=192, num_hidden_layers=LAYERS, num_attention_heads=4,
    max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False,
)  # fmt: skip
_GROUPED: dict[str, Any] = _SIZES | dict(num_key_value_heads=2)
_HEADS: dict[str, Any] = _GROUPED | dict(head_dim=32)
_TIED: dict[str, Any] = _HEADS | dict(tie_word_embeddings=True)
_EXPERTS: dict[str, Any] = dict(num_experts_per_tok=2, moe_intermediate_size=64)


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        config: Makes its config.
        attn_out, mlp_out: Paths below a block of transformers of the modules whose outputs are what the block adds; "" if there
            are none. The right rows of these points are their outputs, times `factor`.
    """

    config: Callable[[], hf.PretrainedConfig]
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    factor: float = 1.0


FAMILIES: dict[str, Family] = {
    "llama": Family(lambda: hf.LlamaConfig(**_HEADS)),
    "stablelm": Family(lambda: hf.StableLmConfig(**_GROUPED)),
    "cohere": Family(lambda: hf.CohereConfig(**_GROUPED)),
    "glm4": Family(
        lambda: hf.Glm4Config(**_HEADS), "post_self_attn_layernorm", "post_mlp_layernorm"
    ),
    "gemma2": Family(
        lambda: hf.Gemma2Config(**_TIED, sliding_window=64, query_pre_attn_scalar=32),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "gemma3": Family(
        lambda: hf.Gemma3TextConfig(**_HEADS, sliding_window=64, query_pre_attn_scalar=32),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "olmo": Family(lambda: hf.OlmoConfig(**_GROUPED)),
    "olmo2": Family(
        lambda: hf.Olmo2Config(**_GROUPED), "post_attention_layernorm", "post_feedforward_layernorm"
    ),
    "gpt_neox": Family(lambda: hf.GPTNeoXConfig(**_SIZES), "attention"),
    "phi": Family(lambda: hf.PhiConfig(**_GROUPED)),
    "phi3": Family(lambda: hf.Phi3Config(**_GROUPED)),
    "starcoder2": Family(lambda: hf.Starcoder2Config(**_GROUPED)),
    "smollm3": Family(lambda: hf.SmolLM3Config(**_GROUPED)),
    "falcon": Family(lambda: hf.FalconConfig(**_SIZES, new_decoder_architecture=False, multi_query=True), "self_attention"),
    "granite": Family(lambda: hf.GraniteConfig(**_GROUPED, residual_multiplier=0.22), factor=0.22),
    "qwen2": Family(lambda: hf.Qwen2Config(**_GROUPED)),
    "qwen3": Family(lambda: hf.Qwen3Config(**_HEADS)),
    "qwen3_moe": Family(lambda: hf.Qwen3MoeConfig(**_HEADS, **_EXPERTS, num_experts=4)),
    "mixtral": Family(lambda: hf.MixtralConfig(**_HEADS, num_local_experts=4, num_experts_per_tok=2)),
    "mistral": Family(lambda: hf.MistralConfig(**_HEADS)),
    "gpt2": Family(
        lambda: hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=1
        ),
        "attn",
    ),
    "opt": Family(
        lambda: hf.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=192, num_hidden_layers=LAYERS, num_attention_heads=4,
            max_position_embeddings=512, word_embed_proj_dim=WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        ),
        mlp_out="fc2",
    ),
    "bloom": Family(
        lambda: hf.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=1
        ),
        "self_attention.dense",
        "mlp.dense_4h_to_h",
    ),
    "gptj": Family(
        lambda: hf.GPTJConfig(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=512, rotary_dim=16, bos_token_id=0,
            eos_token_id=1, tie_word_embeddings=False,
        ),
        "attn",
    ),
    "nemotron": Family(lambda: hf.NemotronConfig(**_HEADS)),
    "olmoe": Family(lambda: hf.OlmoeConfig(**_GROUPED, num_experts=4, num_experts_per_tok=2)),
    "gpt_oss": Family(
        lambda: hf.GptOssConfig(**_HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=64)
    ),
    "granitemoe": Family(
        lambda: hf.GraniteMoeConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2, residual_multiplier=0.22), "", ""
    ),
    "cohere2": Family(lambda: hf.Cohere2Config(**_GROUPED, sliding_window=64)),
    "apertus": Family(lambda: hf.ApertusConfig(**_GROUPED)),
    "exaone4": Family(
        lambda: hf.Exaone4Config(**_GROUPED, sliding_window=64, sliding_window_pattern=2),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "ernie4_5": Family(lambda: hf.Ernie4_5Config(**_HEADS)),
    "seed_oss": Family(lambda: hf.SeedOssConfig(**_HEADS)),
    "arcee": Family(lambda: hf.ArceeConfig(**_GROUPED)),
    "helium": Family(lambda: hf.HeliumConfig(**_HEADS)),
    "gemma": Family(lambda: hf.GemmaConfig(**_TIED)),
    "glm": Family(lambda: hf.GlmConfig(**_HEADS)),
    "hunyuan": Family(lambda: hf.HunYuanDenseV1Config(**_HEADS)),
    "dots1": Family(
        lambda: hf.Dots1Config(**_HEADS, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=64,
                               first_k_dense_replace=1, n_group=1, topk_group=1)
    ),
}  # fmt: skip

_NORM = re.compile(r"norm|^ln|_ln|layer_scalar", re.IGNORECASE)


def make_family(name: str, directory: Path) -> Path:
    """`directory/name` with config and fp32 weights; made when it is not there yet."""
    path = directory / name
    if not (path / "config.json").exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[name].config()).float()  # type: ignore[no-untyped-call]
        randomize(model)
        model.save_pretrained(path)
    return path


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Norm weights around 1, biases around 0, matrices with a gain near 1: what is left out of a row then shows."""
    for name, one in model.named_parameters():
        parts = name.split(".")
        if parts[-1].endswith("bias"):
            one.normal_(0, 0.2)
        elif one.ndim == 1 and any(_NORM.search(part) for part in parts[-2:]):
            one.uniform_(0.5, 1.5)
        elif one.ndim == 2 and re.search(r"emb|wte|wpe", name):
            one.normal_(0, 1)
        elif one.ndim >= 2 and not re.search(r"A_log|conv", name):
            one.normal_(0, one.shape[-1] ** -0.5)
