"""Points are what the field means by them: `attn_out` and `mlp_out` are what is added to the residual stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, learn, locate
from actscope.taps.text_model import blocks

_SMALL = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_IDS = torch.arange(3, 15)[None]
#: Architectures whose points can be named without a pass: by far the most are built like one of these.
BY_NAME = (
    "llama",
    "qwen2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "glm4",
    "exaone4",
    "cohere",
    "falcon",
    "gpt_neox",
    "phi",
)
#: Those that only the values tell.
BY_VALUE = ("opt", "xglm")


def model_of(architecture: str, **changes: object) -> nn.Module:
    """A random model whose norms are no identities, in evaluation mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**_SMALL, **changes})
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(0.5, 1.5)
    return model


def values_at(model: nn.Module, places: dict[str, Location]) -> dict[str, Tensor]:
    """Copies of what plain hooks see at these places in one pass."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: object) -> None:
        found = value[0] if isinstance(value, tuple) else value
        assert isinstance(found, Tensor)
        seen[name] = found.clone()

    handles = []
    for name, place in places.items():
        if place.side == "output":
            handles.append(place.module.register_forward_hook(lambda m, a, out, name=name: keep(name, out)))
        else:
            handles.append(
                place.module.register_forward_pre_hook(
                    lambda m, a, kw, name=name: keep(name, a[0] if a else kw["hidden_states"]), with_kwargs=True
                )
            )
    with torch.no_grad():
        model(input_ids=_IDS)
    for handle in handles:
        handle.remove()
    return seen


def check_sum(model: nn.Module) -> None:
    """resid_pre + attn_out + mlp_out is resid_post in every block."""
    for layer in range(len(blocks(model))):
        points = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        seen = values_at(model, {point: locate(model, Site(layer, point)) for point in points})
        total = seen["resid_pre"] + seen["attn_out"] + seen["mlp_out"]
        torch.testing.assert_close(total.reshape(seen["resid_post"].shape), seen["resid_post"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", BY_NAME)
def test_the_points_of_a_block_sum_to_its_change_without_a_measuring_pass(architecture: str) -> None:
    check_sum(
        model_of(
            architecture, **({"head_dim": 8} if architecture in ("gemma", "gemma2", "gemma3_text", "glm4") else {})
        )
    )


@pytest.mark.parametrize("architecture", [*BY_NAME, *BY_VALUE])
def test_the_points_of_a_measured_model_sum_to_the_change_of_its_stream(architecture: str) -> None:
    sizes: dict[str, object] = {"ffn_dim": 48, "word_embed_proj_dim": 32} if architecture == "opt" else {}
    sizes |= {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48} if architecture == "xglm" else {}
    model = model_of(architecture, **sizes)
    learn(model, lambda: model(input_ids=_IDS))
    check_sum(model)


def test_a_factor_on_what_is_added_is_refused_by_name_measured_or_not() -> None:
    model = model_of("granite", residual_multiplier=0.22)
    with pytest.raises(SiteError, match=r"layers\.1\.attn_out: GraniteDecoderLayer adds 0\.22 times the output"):
        locate(model, Site(1, "attn_out"))
    learn(model, lambda: model(input_ids=_IDS))
    with pytest.raises(SiteError, match=r"adds 0\.22 x self_attn \(attn_out\) \+ 0\.22 x mlp \(mlp_out\)"):
        locate(model, Site(1, "attn_out"))


def test_a_block_without_attention_has_no_attn_out() -> None:
    model = model_of("mamba", state_size=4)
    learn(model, lambda: model(input_ids=_IDS))
    with pytest.raises(SiteError, match=r"no output of one module of MambaBlock, which adds 1 x mixer \(mixer_out\)"):
        locate(model, Site(0, "attn_out"))


def test_a_change_that_is_no_sum_is_refused() -> None:
    model = model_of("llama")
    block = blocks(model)[1]
    forward = block.forward
    block.forward = lambda *a, **k: forward(*a, **k) * 1.01 + 0.1
    learn(model, lambda: model(input_ids=_IDS))
    assert locate(model, Site(0, "mlp_out")).module is blocks(model)[0].mlp
    with pytest.raises(SiteError, match=r"layers\.1\.mlp_out: what LlamaDecoderLayer adds to the stream is no sum"):
        locate(model, Site(1, "mlp_out"))


def test_a_norm_on_the_stream_itself_leaves_the_dense_layers() -> None:
    """BERT adds before its norm: the points are the dense layers' outputs, measured or not."""
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model: Any = BertLMHeadModel(config)
    model.eval()
    before = locate(model, Site(1, "mlp_out"))
    learn(model, lambda: model(input_ids=_IDS))
    assert locate(model, Site(1, "mlp_out")) == before
    assert before.module is blocks(model)[1].get_submodule("output.dense")


def test_an_unknown_point_is_refused_and_not_looked_up_among_the_mlps() -> None:
    with pytest.raises(SiteError, match=r"layers\.0\.router_out: expected a point of a block, one of resid_pre"):
        locate(model_of("llama"), Site(0, "router_out"))
