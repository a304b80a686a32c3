"""Random models of transformers' architectures, small, seeded, and with norms that are no identities."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

_SMALL: dict[str, object] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
#: Sizes that an architecture names otherwise, or that do not follow from the others.
_SIZES: dict[str, dict[str, object]] = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48},
    "bloom": {"n_head": 4, "n_layer": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4},
    "qwen3_next": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "head_dim": 8,
    },
    **{name: {"head_dim": 8} for name in ("gemma", "gemma2", "gemma3_text", "glm4")},
}


def random_model(architecture: str, **changes: object) -> nn.Module:
    """A causal language model of 2 layers and width 32, in evaluation mode; `changes` are fields of its config."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**_SMALL, **_SIZES.get(architecture, {}), **changes})
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(0.5, 1.5)
    return model
