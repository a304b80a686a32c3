"""Tiny configurations of every architecture of transformers: the default configuration with its sizes made small.

Sizes are recognized by their field names, in the configuration itself and in its parts (text, vision, audio). A field is
changed only if its default has a value other than 0, so that optional parts stay as the architecture's authors left them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WIDTH, LAYERS, HEADS, VOCABULARY = 64, 4, 4, 128
PAD, BOS, EOS = 0, 1, 2
#: Widths are multiplied by this for vLLM, whose attention on a CPU takes heads of 32 and up.
WIDE = 2

#: Widths, by field name.
_WIDTHS: dict[str, int] = {
    **dict.fromkeys(
        (
            "hidden_size", "n_embd", "d_model", "dim", "embed_dim", "word_embed_proj_dim", "embedding_size", "lru_width",
            "attention_hidden_size", "hidden_dim", "decoder_hidden_size", "encoder_hidden_size", "embedding_dim",
            "cross_hidden_size", "out_hidden_size", "text_hidden_size", "audio_hidden_size", "projection_dim",
            "vision_output_dim", "output_hidden_size", "lm_hidden_size", "text_dim", "adapter_in_dim", "adapter_out_dim",
            "adapter_input_size",
        ),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            "intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "d_ff",
            "shared_expert_intermediate_size", "ffn_hidden_size", "dim_ff", "d_inner", "moe_shared_expert_intermediate_size",
            "shared_intermediate_size", "dense_intermediate_size", "expert_ffn_hidden_size", "feed_forward_size", "mlp_dim",
            "intermediate_size_mlp", "moe_ffn_hidden_size", "feed_forward_hidden_size", "block_ff_dim", "num_ffn",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "head_dim", "d_kv", "global_head_dim", "d_head", "mamba_d_head", "mamba_head_dim", "mamba_headdim", "swa_head_dim",
            "linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "o_lora_rank", "hidden_size_per_layer_input",
        ),
        16,
    ),
    "mamba_d_ssm": 128, "rotary_dim": 8,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip

#: Numbers of things, and ids, by field name.
_COUNTS: dict[str, int] = {
    **dict.fromkeys(
        (
            "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
            "depth",
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
            "attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "decoder_num_key_value_heads"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "num_experts_per_token", "experts_per_token"),
        2,
    ),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_heads"), 8),
    "num_kv_shared_layers": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "index_n_heads": 4, "index_topk": 16, 
    "image_token_id": VOCABULARY - 4, "image_token_index": VOCABULARY - 4,
    "blank_token_id": 0, "audio_pad_token_id": 0,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS,
}  # fmt: skip


class Scaled(int):
    """A width in an override, to be multiplied by the scale."""


def _rope(*sections: int, theta: float = 10000.0) -> dict[str, object]:
    """Return rotary parameters with these sections for time, height and width."""
    parts = [Scaled(section) for section in sections]
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": parts}}


#: Fields of these model types that follow from others, or that the rule by name cannot know; "part.field" is a part's field.
_OVERRIDES: dict[str, dict[str, object]] = {
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "glm5_next_text": {"num_key_value_heads": HEADS},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "gemma3": {"vision_config.image_size": 32, "vision_config.patch_size": 8, "mm_tokens_per_image": 4},
    "llava": {"vision_config.image_size": 64},
    "mistral3": {"vision_config.image_size": 56},
    "internvl": {"vision_config.image_size": [56, 56]},
    "llama4": {"vision_config.image_size": 56},
    "bamba": {"attn_layer_indices": [1, 3]},
    "molmo2": {"adapter_config.vision_feature_layer": [3, 1]},
    "nemotron_h_omni": {"vision_config.video_temporal_patch_size": 2},
    "fun_asr_nano": {"adaptor_config.intermediate_size": Scaled(WIDTH // 4)},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "longcat_flash": {"head_dim": Scaled(8)},
    "nemotron": {"num_key_value_heads": HEADS},
    **{name: {"head_dim": Scaled(16)} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{
        name: _rope(4, 2, 2)
        for name in (
            "glm4v_text",
            "glm_ocr_text",
            "glmga_text",
            "paddleocr_vl_text",
            "qwen2_5_omni_text",
            "qwen2_5_vl_text",
            "qwen2_vl_text",
        )
    },
    "glm4v_moe_text": _rope(2, 1, 1),
    "hunyuan_vl_text": {**_rope(4, 2, 2), "head_dim": Scaled(16)},
    "ernie4_5_vl_moe_text": _rope(3, 3, 2, theta=500000.0),
    **{
        name: {"attention_hidden_size": Scaled(2 * WIDTH), "attention_head_dim": Scaled(2 * WIDTH // HEADS)}
        for name in ("zamba", "zamba2")
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds": False, "max_position_embeddings": 512},
    "qwen4_exp_text": {
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_block_size": 4,
    },
    "chameleon": {"vocabulary_map": {"<image>": VOCABULARY - 1, "IMGIMGAZ": VOCABULARY - 2}},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"] * (LAYERS // 2)},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96},
    "step3p7": {"text_config.sliding_window": 8},
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {"num_key_value_heads": HEADS, "pad_token_id": PAD},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
}


def shrunk(
    kind: type[PreTrainedConfig],
    *,
    decoder: bool = False,
    scale: int = 1,
    default: PreTrainedConfig | None = None,
    more: Mapping[str, object] | None = None,
    table: Mapping[str, Mapping[str, object]] | None = None,
) -> PreTrainedConfig:
    """Return a tiny configuration of this class.

    Args:
        kind: A configuration class of transformers.
        decoder: Set `is_decoder`, for classes that are encoders by default.
        scale: Factor of all widths.
        default: Configuration to shrink; that of `kind()` by default.
        more: Fields to set besides.
        table: Fields to set besides, by model type: those of an engine.
    """
    default = default if default is not None else kind()
    table = table or {}
    overrides = {**_OVERRIDES.get(default.model_type, {}), **table.get(default.model_type, {}), **(more or {})}
    changed = _sizes(default, scale)
    for name in getattr(kind, "sub_configs", None) or ():
        part = getattr(default, name, None)
        if part is not None and not isinstance(part, dict):
            own = {
                key.removeprefix(f"{name}."): value for key, value in overrides.items() if key.startswith(f"{name}.")
            }
            changed[name] = shrunk(type(part), scale=scale, default=part, more=own, table=table)
    if decoder and hasattr(default, "is_decoder"):
        changed["is_decoder"] = True
    for key, value in overrides.items():
        if "." not in key:
            changed[key] = _scaled(value, scale)
    make: Callable[..., PreTrainedConfig] = kind
    return make(**changed)


def _scaled(value: object, scale: int) -> object:
    """Return the value with all widths in it multiplied."""
    if isinstance(value, dict):
        return {key: _scaled(one, scale) for key, one in value.items()}
    if isinstance(value, list):
        return [_scaled(one, scale) for one in value]
    return value * scale if isinstance(value, Scaled) else value


def _sizes(default: PreTrainedConfig, scale: int) -> dict[str, object]:
    """Return the changed fields of a configuration: its sizes, and its lists with one entry per layer."""
    sizes = {**_COUNTS, **{name: width * scale for name, width in _WIDTHS.items()}}
    fields: Mapping[str, object] = vars(default)
    aliases: Mapping[str, str] = default.attribute_map
    depths = {
        value for name in ("num_hidden_layers", "n_layer") if isinstance(value := getattr(default, name, None), int)
    }
    changed: dict[str, object] = {}
    for name, value in fields.items():
        if name in sizes and _is_size(value):
            changed[name] = _resized(value, sizes[name], depths)
        elif isinstance(value, dict) and "mrope_section" in value:
            changed[name] = {**value, "mrope_section": [4 * scale, 2 * scale, 2 * scale]}
        elif isinstance(value, list) and len(value) in depths and name not in aliases:
            changed[name] = _mixed(value)
    for name, target in aliases.items():
        if name in sizes and target in fields and _is_size(fields[target]):
            changed[target] = sizes[name]
    if "qk_rope_head_dim" in fields:  # multi-head latent attention: as many keys as queries
        changed.pop("head_dim", None)
        changed |= {"num_key_value_heads": HEADS} if "num_key_value_heads" in changed else {}
    return changed


def _resized(value: object, size: int, depths: Collection[int]) -> object:
    """Return the size, or a list of it: as long as the list `value`, or with one entry per layer if that has one."""
    if not isinstance(value, list):
        return size
    return [size] * (LAYERS if len(value) in depths else len(value))


def _is_size(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, int) for one in value)
    return isinstance(value, int) and not isinstance(value, bool) and value != 0


def _mixed(values: list[object]) -> list[object]:
    """Return a list for `LAYERS` layers in which each kind of entry occurs, if there are not more kinds than layers."""
    kinds = [value for i, value in enumerate(values) if value not in values[:i]]
    return [kinds[i % len(kinds)] for i in range(LAYERS)]
