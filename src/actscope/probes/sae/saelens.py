"""SAELens's layout: `cfg.json`, `sae_weights.safetensors`, of versions 2 to 6. Source: SAELens 6.54, `saes/` and `loading/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.probes.checkpoint import read_config, read_safetensors
from actscope.probes.encoder import SaeEncoder
from actscope.probes.hooks import hooked_site, stated_site
from actscope.probes.sae.building import (
    Tensors,
    build,
    centred,
    decoder_norms,
    gated,
    rescaled,
    tensor_named,
    whole_number,
)

_NAMES = (
    "W_enc", "b_enc", "b_dec", "W_dec", "threshold", "log_threshold", "topk_threshold", "r_mag", "b_gate", "b_mag",
    "scaling_factor", "finetuning_scaling_factor",
)  # fmt: skip
_T = TypeVar("_T")
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
_KINDS = ("standard", "topk", "jumprelu", "gated", *_BATCH_TOPK)


class _SaeLensMetadata(msgspec.Struct):
    """Where the SAE belongs: `metadata` of version 6, the top level of earlier ones."""

    sae_lens_version: str | None = None
    model_name: str | None = None
    hook_name: str | None = None
    hook_point: str | None = None
    hf_hook_name: str | None = None
    hook_head_index: int | None = None
    hook_point_head_index: int | None = None
    hook_name_out: str | None = None
    model_from_pretrained_kwargs: dict[str, object] | None = None


class _SaeLensConfig(_SaeLensMetadata):
    """`cfg.json`. A runner's config has the SAE's own under `sae`."""

    architecture: str | None = None
    k: int | float | str | None = None
    activation_fn: str | None = None
    activation_fn_str: str | None = None
    activation_fn_kwargs: dict[str, object] | None = None
    apply_b_dec_to_input: bool | None = None
    normalize_activations: bool | str | None = None
    rescale_acts_by_decoder_norm: bool | None = None
    reshape_activations: str | None = None
    metadata: _SaeLensMetadata | None = None
    meta: _SaeLensMetadata | None = None
    sae: _SaeLensConfig | None = None


def saelens(path: Path, site: str | None) -> SaeEncoder:
    """Read SAELens's layout: standard, topk, jumprelu, gated, and batchtopk with its threshold.

    The features are those of `SAE.encode`. Norms of the decoder (`rescale_acts_by_decoder_norm`) and the centring of
    `model_from_pretrained_kwargs: {center_writing_weights}` are folded into the weights.
    """
    outer = read_config(path / "cfg.json", _SaeLensConfig)
    config = outer.sae or outer
    named = (config.metadata, config.meta, config, outer.metadata, outer)
    places = [one for one in named if one is not None]
    tensors = read_safetensors(path / "sae_weights.safetensors", _NAMES).tensors
    kind = _kind(config, "6.0" if outer.sae else str(_first(places, "sae_lens_version", "")))
    said = _site(config, places, kind)
    _check_scaling(tensors)
    shift = True if config.apply_b_dec_to_input is None else config.apply_b_dec_to_input
    normalisation = _normalisation(config.normalize_activations)
    loading: dict[str, object] = _first(places, "model_from_pretrained_kwargs", {})
    if loading.get("center_writing_weights") is True:
        tensors = centred(tensors, _first(places, "model_name", ""), normalisation, shift=shift)
    if kind == "gated":
        parts = [tensor_named(tensors, name) for name in ("W_enc", "r_mag", "b_gate", "b_mag")]
        tensors, kind = {"b_dec": tensor_named(tensors, "b_dec")} | gated(*parts), "jumprelu"
    elif config.rescale_acts_by_decoder_norm and kind in ("topk", *_BATCH_TOPK):
        weight = tensor_named(tensors, "W_enc")
        tensors = rescaled(tensors, np.maximum(decoder_norms(tensors, "W_dec", weight.shape[::-1], 1), 1e-8))
    if kind in _BATCH_TOPK:
        tensors, kind = _with_threshold(tensors), "jumprelu"  # as SAELens itself runs them
    k = whole_number(_k(config), "cfg.json: k") if kind == "topk" else 0
    kind = "relu" if kind == "standard" else kind
    return build(path.name, tensors, kind, k, stated_site(site, said), shift=shift, normalisation=normalisation)


def _kind(config: _SaeLensConfig, version: str) -> str:
    """Return the architecture. Before version 6, the activation function decides whether a standard SAE is TopK."""
    kind = config.architecture or "standard"
    before_6 = not (match := re.match(r"(\d{1,4})\.", version)) or int(match[1]) < 6
    decides = before_6 or config.architecture is None
    function = (config.activation_fn_str or config.activation_fn or "relu") if decides else "relu"
    if function == "topk":
        return "topk"
    if "transcoder" in kind:
        raise ProbeError(
            f"cfg.json: {kind}: it reads the MLP's input, a point that no site reads, and predicts its output; take an SAE"
        )
    if kind not in _KINDS or (kind == "standard" and function != "relu"):
        raise ProbeError(
            f"cfg.json: activation {function if kind == 'standard' else kind!r} is not computed here; there are "
            f"{', '.join(_KINDS)}"
        )
    return kind


def _k(config: _SaeLensConfig) -> object:
    kwargs = config.activation_fn_kwargs or {}
    if kwargs.get("signed"):
        raise ProbeError("cfg.json: a signed topk, whose features may be negative, is not computed here")
    return kwargs["k"] if kwargs.get("k") is not None else config.k


def _site(config: _SaeLensConfig, places: list[_SaeLensMetadata], kind: str) -> str | None:
    hook = str(
        _first(places, "hook_name", "") or _first(places, "hook_point", "") or _first(places, "hf_hook_name", "")
    )
    if config.reshape_activations == "hook_z" and not hook:
        hook = "blocks.0.attn.hook_z"
    head = next((h for p in places for h in (p.hook_head_index, p.hook_point_head_index) if h is not None), None)
    if head is not None:
        raise ProbeError(f"cfg.json: it reads head {head} of {hook or 'a hook'} alone, and a site has all heads' sum")
    out = _first(places, "hook_name_out", "")
    if out and out != hook:
        raise ProbeError(f"cfg.json: a transcoder from {hook} to {out}; {kind} SAEs of one site are read here")
    return hooked_site(hook, _first(places, "model_name", "")) if hook else None


def _normalisation(found: bool | str | None) -> str:
    how = "expected_average_only_in" if found is True else found or "none"
    if how in ("expected_average_only_in", "covariance_whitening"):
        raise ProbeError(
            f'cfg.json: normalize_activations "{how}" is not computed here: the scale of its rows is not in the file. Fold it '
            "first, in SAELens: sae.fold_activation_norm_scaling_factor(sqrt(d_in) / mean norm of the rows), "
            "or sae.fold_activation_whitening(...), then sae.save_model(folder)"
        )
    return str(how)


def _check_scaling(tensors: Tensors) -> None:
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in tensors and not np.allclose(tensors[name], 1):
            raise ProbeError(f'tensor "{name}" rescales its features after finetuning, which is not computed here')


def _with_threshold(tensors: Tensors) -> Tensors:
    """Return a BatchTopK's tensors with the threshold that replaces the batch."""
    threshold = tensors.get("topk_threshold", tensors.get("threshold"))
    if threshold is None or not threshold.size or not (threshold > 0).any():
        raise ProbeError(
            "cfg.json: a batchtopk SAE without a threshold, whose features depend on the rest of the batch; in SAELens, train "
            "on and save it with save_inference_model(folder)"
        )
    return tensors | {"threshold": threshold}


def _first(places: list[_SaeLensMetadata], name: str, default: _T) -> _T:
    """Return the first value of this name that is not None."""
    return next((value for place in places if (value := getattr(place, name)) is not None), default)
