"""Tiny configurations for vLLM: fields that its model files read, and sizes that its kernels on a CPU take."""

from __future__ import annotations

from actscope.bench.models.configs import WIDTH, Scaled

#: Model types whose kernels on a CPU take bfloat16 alone.
BFLOAT16 = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"})

#: Largest deviation of a block's row in bfloat16 (8 bits, 4e-3) that counts as equal, relative to its largest number.
BFLOAT16_ROWS = 3e-2

#: Names of classes in the configurations of real checkpoints, where transformers writes another one.
CLASSES = {"phimoe": "PhiMoEForCausalLM"}

#: Multi-head latent attention: the only size of the latent state that vLLM's kernel on a CPU has is 512 + 64.
_LATENT: dict[str, object] = {
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32,
}  # fmt: skip

#: Gated delta rule: the smallest head that vLLM's kernel on a CPU has.
_DELTA: dict[str, object] = {"linear_key_head_dim": 128, "linear_value_head_dim": 128}

#: Fields of these model types, besides those of `configs`.
OVERRIDES: dict[str, dict[str, object]] = {
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "ffn_hidden_size": Scaled(4 * WIDTH)},
    "gpt_bigcode": {"num_key_value_heads": 1},
    "deepseek_v2": {**_LATENT, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**_LATENT, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "axk1": _LATENT,
    "axk2": _LATENT,
    "youtu": _LATENT,
    "longcat_flash": {**_LATENT, "mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    "glm4_moe_lite": {**_LATENT, "first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "lfm2": {
        "block_dim": Scaled(WIDTH), "conv_dim": Scaled(WIDTH), "layer_types": ["conv", "full_attention"] * 2,
    },
    "llama4_text": {"num_experts_per_tok": 1},
    "nemotron_h": {  # transformers alone clamps steps from below, at the least step that it initializes
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"], "time_step_min": 1e-9,
    },
    "glm4_moe": {"head_dim": Scaled(16)},
    "minimax_m2": {"rotary_dim": Scaled(8), "scoring_func": "sigmoid", "use_routing_bias": True},
    "afmoe": {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1},
    "qwen3_5_text": _DELTA,
    # All experts take part: which ones do would hang on the rounding of the router.
    **{name: {**_DELTA, "num_experts_per_tok": 4} for name in ("qwen3_next", "qwen3_5_moe_text")},
    "hy_v3": {"first_k_dense_replace": 1},
}  # fmt: skip
