"""Names that other tools have for a point of a model, as sites.

    blocks.8.hook_resid_pre, blocks.8.hook_in           TransformerLens, HookedTransformer and TransformerBridge
    model.layers.8, model.layers.8.output               modules of transformers (Gemma Scope 2, SAELens on transformers)

A point that no site reads is an error with its reason, whichever site the user names: an encoder or a probe of it would give
plausible numbers on the rows of another point. Sources: TransformerLens 3.9 (`model_bridge/generalized_components/block.py`,
`components/transformer_block.py`) and SAELens 6.54 (`loading/pretrained_sae_loaders.py`).
"""

from __future__ import annotations

import re

from actscope.errors import ProbeError, SiteError
from actscope.near_miss import HOOK_POINTS
from actscope.sites import Site

_REMEDY = "take an encoder of hook_resid_pre, hook_resid_post, hook_attn_out or hook_mlp_out instead"
_HEADS = f"it reads single attention heads before the output projection, a point that no site reads; {_REMEDY}"
_MLP_INPUT = f"it reads the MLP's input or inside, as transcoders do, a point that no site reads; {_REMEDY}"
_MIDDLE = f"it reads the stream between attention and MLP, a point that no site reads; {_REMEDY}"
_ATTENTION_INPUT = f"it reads the attention's input, a point that no site reads; {_REMEDY}"
_EMBEDDING = (
    "it reads the token embedding alone, and the site embed is the first block's whole input; if this model adds nothing to "
    "the embedding, write blocks.0.hook_resid_pre in its place"
)
_NORM = "it reads a norm before its scale, a point that no site reads; final_norm is the norm's output"

#: A module's own output. It is what the block adds, unless a norm stands behind the module.
_OUTPUTS = {"attn.hook_out": "attn_out", "mlp.hook_out": "mlp_out"}
_REFUSED = (
    (r"attn\.(hook_z|o\.hook_in)|attn\.(hook_)?(q|k|v|result|rot_q|rot_k|pattern|attn_scores)\b.*", _HEADS),
    (r"hook_resid_mid2?|ln2\.hook_in", _MIDDLE),
    (r"hook_mlp_in|mlp\..*|ln2\..*", _MLP_INPUT),
    (r"hook_attn_in|hook_[qkv]_input|attn\..*|ln1\..*", _ATTENTION_INPUT),
)

_MODULE = re.compile(r"(?:[a-z_]\w*\.)*(?:layers|layer|h|blocks)\.(\d{1,9})(?:\.(.+?))??(?:\.(input|output))?")
_ATTENTIONS = r"self_attn|self_attention|attention|attn"
#: Families that normalise what attention and MLP give before it is added. Their post_attention_layernorm is that norm.
_POST_NORM = re.compile(r"gemma-?v?[23]|gemma-scope|olmo-?[23]|glm-?4|exaone-?4", re.IGNORECASE)


def site_of_hook(hook: str, model: str = "") -> str | None:
    """Return the site of a hook: `blocks.8.hook_resid_pre` is `layers.8.resid_pre`. None if no site reads that point."""
    try:
        return hooked_site(hook, model)
    except ProbeError:
        return None


def hooked_site(hook: str, model: str = "") -> str:
    """Return the site of another tool's name for a point.

    Args:
        hook: Name of a hook of TransformerLens, or path of a module of transformers.
        model: The model's name, if known: where a module's output is not what its block adds depends on the family.

    Raises:
        ProbeError: No site reads that point, or the name is unknown. The message has the reason and a remedy.
    """
    if hook in ("hook_embed", "embed.hook_out", "hook_pos_embed") or hook.endswith(("embed_tokens", "wte")):
        raise ProbeError(f"{hook}: {_EMBEDDING}")
    if hook in ("ln_final.hook_out", "model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm"):
        return "final_norm"
    if hook.startswith("ln_final."):
        raise ProbeError(f"{hook}: {_NORM}")
    if match := re.fullmatch(r"blocks\.(\d{1,9})\.([\w.]*hook_\w+)", hook):
        return f"layers.{int(match[1])}.{_hooked_point(hook, match[2], model)}"
    if match := _MODULE.fullmatch(hook):
        return f"layers.{int(match[1])}.{_module_point(hook, match[2] or '', match[3] or 'output', model)}"
    raise ProbeError(f"{hook!r} is not the name of a point that is known here; {_REMEDY}")


def stated_site(wanted: str | None, stated: str | None) -> str | None:
    """Return the site of a file: the one that the user wants, else the one that it states.

    The user may read an encoder of the stream elsewhere in the stream, and one of `attn_out` at that of another layer: the same
    rows have two names, and encoders are carried over to other layers. What is of another kind is never meant.

    Raises:
        ProbeError: The two are of different kinds, or one is not a site.
    """
    try:
        kinds = {_kind_of(Site.parse(name)) for name in (wanted, stated) if name is not None}
    except SiteError as error:
        raise ProbeError(str(error)) from error
    if len(kinds) > 1:
        raise ProbeError(
            f"the file is for {stated}, and {wanted} has rows of another kind; leave the site out, or correct the file if it is "
            "wrong"
        )
    return wanted or stated


def _kind_of(site: Site) -> str:
    return "stream" if site.point in ("embed", "resid_pre", "resid_post") else site.point


def _hooked_point(hook: str, name: str, model: str) -> str:
    if name in HOOK_POINTS:
        return HOOK_POINTS[name]
    if name in _OUTPUTS:
        return _output(hook, _OUTPUTS[name], model)
    reason = next((why for pattern, why in _REFUSED if re.fullmatch(pattern, name)), f"not known here; {_REMEDY}")
    raise ProbeError(f"{hook}: {reason}")


def _output(hook: str, point: str, model: str) -> str:
    """Return `point`, unless this family has a norm behind the module."""
    if _POST_NORM.search(model):
        raise ProbeError(
            f"{hook}: the module's output before its norm; the site {point} is what the block adds, behind the norm, in "
            f"{model}; {_REMEDY}"
        )
    return point


def _module_point(hook: str, module: str, side: str, model: str) -> str:
    """Return the point that a module of a block reads or writes."""
    if not module:
        return "resid_post" if side == "output" else "resid_pre"
    if re.fullmatch(rf"(?:{_ATTENTIONS})\.\w+", module) and side == "input":
        raise ProbeError(f"{hook}: {_HEADS}")
    if side == "output":
        if module in ("post_feedforward_layernorm", "post_mlp_layernorm"):
            return "mlp_out"
        if module in ("post_attention_layernorm", "post_self_attn_layernorm") and _POST_NORM.search(model):
            return "attn_out"
        if re.fullmatch(rf"(?:{_ATTENTIONS})(?:\.(?:o_proj|c_proj|out_proj|dense))?", module):
            return _output(hook, "attn_out", model)
        if re.fullmatch(r"mlp(?:\.(?:down_proj|c_proj|dense_4h_to_h))?", module):
            return _output(hook, "mlp_out", model)
    if re.search(r"mlp|feedforward|ffn|ln_2|post_attention", module):
        raise ProbeError(f"{hook}: {_MLP_INPUT}")
    raise ProbeError(f"{hook}: a module whose {side} no site reads; {_REMEDY}")
