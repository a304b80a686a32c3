"""Other tools' names for a point: the site that has the same rows, or a refusal with the reason."""

from __future__ import annotations

import pytest

from actscope.errors import ProbeError
from actscope.probes.hooks import hooked_site, stated_site


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.8.hook_resid_pre", "layers.8.resid_pre"),
        ("blocks.8.hook_resid_post", "layers.8.resid_post"),
        ("blocks.0.hook_attn_out", "layers.0.attn_out"),
        ("blocks.31.hook_mlp_out", "layers.31.mlp_out"),
        ("blocks.8.hook_in", "layers.8.resid_pre"),
        ("blocks.8.hook_out", "layers.8.resid_post"),
        ("blocks.8.attn.hook_out", "layers.8.attn_out"),
        ("blocks.8.mlp.hook_out", "layers.8.mlp_out"),
        ("blocks.8.ln2_post.hook_out", "layers.8.mlp_out"),
        ("model.layers.12", "layers.12.resid_post"),
        ("model.layers.12.output", "layers.12.resid_post"),
        ("model.layers.12.input", "layers.12.resid_pre"),
        ("gpt_neox.layers.3.mlp", "layers.3.mlp_out"),
        ("transformer.h.3.attn", "layers.3.attn_out"),
        ("model.layers.3.self_attn.o_proj.output", "layers.3.attn_out"),
        ("model.norm", "final_norm"),
    ],
)
def test_a_point_that_a_site_reads_has_its_name(hook: str, site: str) -> None:
    assert hooked_site(hook) == site


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("blocks.8.attn.hook_z", "single attention heads"),
        ("blocks.8.attn.o.hook_in", "single attention heads"),
        ("blocks.8.attn.hook_q", "single attention heads"),
        ("model.layers.8.self_attn.o_proj.input", "single attention heads"),
        ("blocks.8.hook_resid_mid", "between attention and MLP"),
        ("blocks.8.ln2.hook_in", "between attention and MLP"),
        ("blocks.8.ln2.hook_normalized", "transcoders"),
        ("blocks.8.hook_mlp_in", "transcoders"),
        ("blocks.8.mlp.hook_in", "transcoders"),
        ("blocks.8.mlp.hook_post", "transcoders"),
        ("model.layers.8.pre_feedforward_layernorm.output", "transcoders"),
        ("model.layers.8.mlp.down_proj.input", "transcoders"),
        ("blocks.8.ln1.hook_normalized", "attention's input"),
        ("hook_embed", "token embedding alone"),
        ("ln_final.hook_normalized", "before its scale"),
        ("blocks.8.hook_something_new", "not known here"),
        ("layer 8", "not the name of a point"),
        ("blocks.99999999999999999999.hook_resid_pre", "not the name of a point"),
    ],
)
def test_a_point_that_no_site_reads_is_refused_with_the_reason_and_the_remedy(hook: str, reason: str) -> None:
    with pytest.raises(ProbeError, match=reason) as caught:
        hooked_site(hook)
    assert hook in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("instead", "in its place", "final_norm is"))


def test_a_modules_output_is_not_what_is_added_where_a_norm_stands_behind_it() -> None:
    """In Gemma 2, `mlp_out` is behind post_feedforward_layernorm. In Llama, post_attention_layernorm is the MLP's own norm."""
    with pytest.raises(ProbeError, match="before its norm"):
        hooked_site("model.layers.3.mlp", "google/gemma-2-2b")
    assert hooked_site("model.layers.3.post_feedforward_layernorm.output", "gemma-3-4b") == "layers.3.mlp_out"
    assert hooked_site("model.layers.3.post_attention_layernorm.output", "gemma-3-4b") == "layers.3.attn_out"
    assert (
        hooked_site("blocks.3.hook_mlp_out", "gemma-2-2b") == "layers.3.mlp_out"
    )  # TransformerLens hooks behind the norm
    with pytest.raises(ProbeError, match="transcoders"):
        hooked_site("model.layers.3.post_attention_layernorm.output", "meta-llama/Llama-3.1-8B")


def test_the_user_may_name_another_site_of_the_same_kind_and_no_other() -> None:
    """resid_pre of block 8 is resid_post of block 7, and an encoder may be carried over to another layer on purpose."""
    assert stated_site("layers.7.resid_post", "layers.8.resid_pre") == "layers.7.resid_post"
    assert stated_site("embed", "layers.0.resid_pre") == "embed"
    assert stated_site("layers.3.attn_out", "layers.2.attn_out") == "layers.3.attn_out"
    assert stated_site(None, "layers.8.mlp_out") == stated_site("layers.8.mlp_out", None) == "layers.8.mlp_out"
    for wanted in ("layers.8.resid_post", "layers.8.mlp_out", "final_norm"):
        with pytest.raises(ProbeError, match=rf"for layers\.8\.attn_out, and {wanted} has rows of another kind"):
            stated_site(wanted, "layers.8.attn_out")
    with pytest.raises(ProbeError, match="expected layers"):
        stated_site("layers.8.middle", None)
