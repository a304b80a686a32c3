"""Points are what the field means by them: `attn_out` and `mlp_out` are what is added to the residual stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.taps.models import random_model
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, learn, locate, resolve
from actscope.taps.text_model import blocks

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


def values_at(model: nn.Module, places: dict[str, Location]) -> dict[str, Tensor]:
    """Copies of what plain hooks see at these places in one pass."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: object) -> None:
        found = value[0] if isinstance(value, tuple) else value
        assert isinstance(found, Tensor)
        seen[name] = found * places[name].scale

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
    check_sum(random_model(architecture))


@pytest.mark.parametrize("architecture", [*BY_NAME, *BY_VALUE])
def test_the_points_of_a_measured_model_sum_to_the_change_of_its_stream(architecture: str) -> None:
    model = random_model(architecture)
    learn(model, lambda: model(input_ids=_IDS))
    check_sum(model)


@pytest.mark.parametrize("factor", [0.22, 1.7])
def test_a_factor_is_part_of_what_is_added_measured_or_not(factor: float) -> None:
    model = random_model("granite", residual_multiplier=factor)
    assert locate(model, Site(1, "attn_out")).scale == factor
    check_sum(model)
    learn(model, lambda: model(input_ids=_IDS))
    assert locate(model, Site(1, "attn_out")).scale == factor
    check_sum(model)


def test_a_mixer_is_no_attention() -> None:
    model = random_model("mamba")
    with pytest.raises(SiteError, match=r"layers\.0\.attn_out: expected a child named"):
        locate(model, Site(0, "attn_out"))
    learn(model, lambda: model(input_ids=_IDS))
    with pytest.raises(SiteError, match=r"no output of one module of MambaBlock, which adds 1 x mixer \(mixer_out\)"):
        locate(model, Site(0, "attn_out"))
    seen = values_at(model, {p: locate(model, Site(0, p)) for p in ("resid_pre", "mixer_out", "resid_post")})
    torch.testing.assert_close(seen["resid_pre"] + seen["mixer_out"], seen["resid_post"])


def test_points_that_only_some_blocks_have_are_taken_where_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """Qwen3-Next has attention in some blocks and a linear mixer in the others."""
    model = random_model("qwen3_next", layer_types=["linear_attention", "full_attention"])
    found = [site.name for site in resolve(model, "all", ("attn_out", "mixer_out", "resid_post"))]
    assert found == [
        "layers.0.mixer_out", "layers.0.resid_post", "layers.1.attn_out", "layers.1.resid_post",
    ]  # fmt: skip
    assert caplog.messages == []
    assert [site.name for site in resolve(model, "all", "attn_out")] == ["layers.1.attn_out"]
    assert caplog.messages[0].startswith("1 of 2 sites are left out, first layers.0.attn_out: expected a child named")
    with pytest.raises(SiteError, match=r"layers\.0\.attn_out"):
        resolve(model, "all.attn_out")


def test_what_is_added_to_a_stream_that_is_scaled_is_refused() -> None:
    """Gemma 4 can multiply its whole stream at the end of a block."""
    model = random_model("llama")
    block = blocks(model)[1]
    forward = block.forward
    block.forward = lambda *a, **k: forward(*a, **k) * 0.7
    learn(model, lambda: model(input_ids=_IDS))
    assert locate(model, Site(1, "resid_post")).module is block
    with pytest.raises(
        SiteError, match=r"layers\.1\.attn_out: LlamaDecoderLayer multiplies the stream by 0\.7 besides"
    ):
        locate(model, Site(1, "attn_out"))


def test_a_change_that_is_no_sum_is_refused() -> None:
    model = random_model("llama")
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
        locate(random_model("llama"), Site(0, "router_out"))
