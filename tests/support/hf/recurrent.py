"""Tiny random models with recurrent states, pure and mixed with attention; made in memory, seeded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 258
_COMMON: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=4, bos_token_id=256, eos_token_id=257, pad_token_id=0
)
_ATTENTION: dict[str, Any] = dict(
    _COMMON, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512
)
_MAMBA2: dict[str, Any] = dict(
    mamba_n_heads=8, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=16, mamba_chunk_size=8, mamba_expand=2
)
_LINEAR: dict[str, Any] = dict(
    head_dim=16, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4
)
_CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": dict(_COMMON, state_size=8),
    "mamba2": dict(_COMMON, state_size=16, num_heads=8, head_dim=16, n_groups=1, chunk_size=8),
    "falcon_mamba": dict(_COMMON, state_size=8),
    "rwkv": dict(_COMMON, context_length=512, attention_hidden_size=64, intermediate_size=96),
    "xlstm": dict(
        _COMMON, embedding_dim=64, num_blocks=4, num_heads=4, qk_dim_factor=1.0, chunk_size=8, autocast_kernel_dtype="float32",
        inference_state_dtype="float32",
    ),
    "jamba": dict(
        _ATTENTION, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8,
        use_mamba_kernels=False,
    ),
    "falcon_h1": dict(_ATTENTION, **_MAMBA2, mamba_d_ssm=128),
    "bamba": dict(_ATTENTION, **_MAMBA2, attn_layer_indices=[2]),
    "granitemoehybrid": dict(
        _ATTENTION, **_MAMBA2, num_local_experts=2, num_experts_per_tok=1, shared_intermediate_size=64,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    ),
    "nemotron_h": dict(
        _ATTENTION, head_dim=16, ssm_state_size=16, mamba_num_heads=8, mamba_head_dim=16, n_groups=1, chunk_size=8,
        use_mamba_kernels=False, layers_block_type=["linear_attention", "full_attention", "mlp", "linear_attention"],
    ),
    "zamba2": dict(
        _ATTENTION, mamba_d_state=16, n_mamba_heads=8, chunk_size=8, use_mamba_kernels=False,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
    ),
    "qwen3_next": dict(
        _ATTENTION, **_LINEAR, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, layer_types=["linear_attention"] * 3 + ["full_attention"],
    ),
    "qwen3_5_text": dict(
        _ATTENTION, **_LINEAR, layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"]
    ),
    "lfm2": dict(_ATTENTION, layer_types=["conv", "full_attention", "conv", "full_attention"], block_multiple_of=16),
    "minimax": dict(
        _ATTENTION, num_local_experts=2, num_experts_per_tok=1, block_size=8,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
    ),
    "recurrent_gemma": dict(_ATTENTION, lru_width=64, attention_window_size=32, block_types=["recurrent", "attention"]),
}  # fmt: skip

#: Models with recurrent layers alone.
STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm")
#: Models that mix recurrent layers and attention.
HYBRIDS = tuple(name for name in _CONFIGS if name not in STATE_SPACE)
RECURRENT = tuple(_CONFIGS)


def recurrent(kind: str) -> Any:
    """A seeded random model of 4 layers and width 64, in evaluation mode; the gates are not all open."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **_CONFIGS[kind])
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model.train(False).requires_grad_(False)
