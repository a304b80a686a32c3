"""Llama Scope (arXiv:2410.20526) and later SAEs of OpenMOSS's Language-Model-SAEs (llamascopium).

Two generations, told apart by their configuration file: `hyperparams.json` (November 2024, `sae.py`) and `config.json` (2025 and
2026, `models/sparse_dictionary.py`, `models/sae.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.probes.checkpoint import read_config, read_safetensors, refuse_pickle
from actscope.probes.encoder import SaeEncoder
from actscope.probes.hooks import hooked_site, stated_site
from actscope.probes.sae.building import (
    LINEAR,
    NORM_TOLERANCE,
    Tensors,
    build,
    decoder_norms,
    linear,
    only_known,
    tensor_named,
    whole_number,
)

_NORM = "dataset_average_activation_norm"
_NAMES = (*LINEAR, "W_E", "b_E", "W_D", "b_D", "log_jumprelu_threshold", "activation_function.*", f"{_NORM}.*")
#: Where the library looks for the weights, in its order.
_WEIGHTS = ("sae_weights", "checkpoints/pruned", "checkpoints/final", "final")


class _OpenMossConfig(msgspec.Struct):
    """The settings of both generations that decide the features."""

    sae_type: str = "sae"
    hook_point_in: str | None = None
    hook_point_out: str | None = None
    act_fn: str | None = None
    norm_activation: str = "dataset-wise"
    dataset_average_activation_norm: dict[str, float] | None = None
    sparsity_include_decoder_norm: bool = True
    use_decoder_bias: bool = True
    apply_decoder_bias_to_pre_encoder: bool | None = None
    use_glu_encoder: bool = False
    jump_relu_threshold: float | None = None
    top_k: int | str | None = None


def llama_scope(path: Path, site: str | None) -> SaeEncoder:
    """Read the first generation: `hyperparams.json` and `checkpoints/final.safetensors`.

    With s = sqrt(d) / average norm of the input, features = act((x @ W + b / s) * |decoder row|). The threshold applies to that
    product, so features are on the scale of the stream. (Those of SAELens are s times larger.)
    """
    config = read_config(path / "hyperparams.json", _OpenMossConfig)
    said = _checked_site(config, "hyperparams.json")
    tensors = read_safetensors(_weights(path), LINEAR).tensors
    w, b = linear(tensors)
    into, out = 1.0, 1.0
    if config.norm_activation == "dataset-wise":
        into, out = (_scale(config.dataset_average_activation_norm or {}, name, w.shape[0]) for name in ("in", "out"))
    size = np.ones(w.shape[1], np.float32)
    if config.sparsity_include_decoder_norm:
        size = decoder_norms(tensors, "decoder.weight", w.shape, 0) * np.float32(into / out)
    kind, threshold = (config.act_fn or "jumprelu").lower(), config.jump_relu_threshold or 0.0
    if kind == "topk" and threshold > 0:
        kind = "jumprelu"  # as OpenMOSS itself runs them
    shift = config.use_decoder_bias and config.apply_decoder_bias_to_pre_encoder in (None, True)
    found: Tensors = {
        "W_enc": w * size,
        "b_enc": b / np.float32(into) * size,
        "threshold": np.full(len(b), threshold, np.float32),
    }
    if shift:
        found["b_dec"] = tensor_named(tensors, "decoder.bias") / np.float32(out)
    return _built(path, config, found, kind, stated_site(site, said), shift=shift)


def llama_scope_2(path: Path, site: str | None) -> SaeEncoder:
    """Read the second generation: `config.json` and `sae_weights.safetensors` (Llama Scope R1-Distill and later).

    The features are those of `SparseAutoEncoder.encode` on rows that `normalize_activations` has scaled. With
    z = (s * x) @ W_E + b_E and s = sqrt(d) / average norm of the input, a feature is z where z * |decoder row| is above the
    threshold, and 0 elsewhere.
    """
    config = read_config(path / "config.json", _OpenMossConfig)
    said = _checked_site(config, "config.json")
    tensors = read_safetensors(_weights(path), _NAMES).tensors
    w, b, sizes = _encoder(tensors)
    if not config.sparsity_include_decoder_norm:
        sizes = np.ones_like(sizes)
    scale = 1.0
    if config.norm_activation == "dataset-wise":
        norms = {name.removeprefix(f"{_NORM}."): _number(t) for name, t in tensors.items() if name.startswith(_NORM)}
        scale = _scale(norms, config.hook_point_in or "", w.shape[0])
    kind = (config.act_fn or "relu").lower()
    found: Tensors = {"W_enc": w * np.float32(scale), "b_enc": b}
    if kind == "jumprelu":
        logs = tensors.get("activation_function.log_jumprelu_threshold", tensors.get("log_jumprelu_threshold"))
        if logs is None or logs.shape != b.shape or not (sizes > 0).all():
            raise ProbeError(f"jumprelu needs log_jumprelu_threshold [{len(b)}] and a decoder without zeros")
        found["threshold"] = (np.exp(logs.astype(np.float64)) / sizes).astype(np.float32)
    elif kind == "topk" and not np.allclose(sizes, 1, atol=NORM_TOLERANCE):
        raise ProbeError(
            "its topk chooses by activation times decoder norm, and its features are without that norm: not computed here. "
            "Fold the norms first: W_E *= norm, b_E *= norm, W_D /= norm, then save_pretrained(folder)"
        )
    shift = config.use_decoder_bias and config.apply_decoder_bias_to_pre_encoder is True
    if shift:
        found["b_dec"] = _either(tensors, "b_D", "decoder.bias") / np.float32(scale)
    return _built(path, config, found, kind, stated_site(site, said), shift=shift)


def _checked_site(config: _OpenMossConfig, file: str) -> str | None:
    """Return the site. Raises ProbeError for a setting that changes the features and is not computed here."""
    only_known(f"{file}: norm_activation", config.norm_activation, ("dataset-wise", "inference", "token-wise"))
    if config.use_glu_encoder:
        raise ProbeError(f"{file}: use_glu_encoder: an encoder with a sigmoid gate is not computed here")
    if config.sae_type != "sae":
        raise ProbeError(f"{file}: sae_type {config.sae_type!r}: it reads several points or layers; take an SAE of one")
    hook, out = config.hook_point_in or "", config.hook_point_out or config.hook_point_in
    site = hooked_site(hook) if hook else None
    if out != config.hook_point_in:
        raise ProbeError(f"{file}: a transcoder from {hook} to {out}; SAEs of one site are read here")
    return site


def _built(
    path: Path, config: _OpenMossConfig, found: Tensors, kind: str, site: str | None, *, shift: bool
) -> SaeEncoder:
    only_known("act_fn", kind, ("relu", "jumprelu", "topk"))
    k = whole_number(config.top_k, "top_k") if kind == "topk" else 0
    how = "constant_norm_rescale" if config.norm_activation == "token-wise" else "none"
    return build(path.name, found, kind, k, site, shift=shift, normalisation=how)


def _weights(path: Path) -> Path:
    """Return the file of the weights. Raises ProbeError if there is none, or only a pickle."""
    found = next((path / f"{name}.safetensors" for name in _WEIGHTS if (path / f"{name}.safetensors").exists()), None)
    if found is not None:
        return found
    pickled = next((name for name in _WEIGHTS if (path / f"{name}.pt").exists()), None)
    if pickled is not None:
        raise refuse_pickle(f"{pickled}.pt")
    raise ProbeError(f"no weights: none of {', '.join(f'{name}.safetensors' for name in _WEIGHTS)}")


def _encoder(tensors: Tensors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W_E [d, m], b_E [m] and the norms of the decoder's rows [m]."""
    if "W_E" not in tensors:
        w, b = linear(tensors)
        return w, b, decoder_norms(tensors, "decoder.weight", w.shape, 0)
    w, b = tensors["W_E"], tensor_named(tensors, "b_E")
    if w.ndim != 2 or b.shape != w.shape[1:]:
        raise ProbeError(f"W_E {list(w.shape)} and b_E {list(b.shape)} do not fit together")
    return w, b, decoder_norms(tensors, "W_D", w.shape[::-1], 1)


def _scale(norms: Mapping[str, float], name: str, d: int) -> float:
    """Return what scales rows of this average norm to sqrt(d). Raises ProbeError if the norm is absent or not positive."""
    norm = norms.get(name)
    if norm is None or not 0 < norm < math.inf:
        raise ProbeError(f'"{_NORM}" must be a number above 0 for {name!r}, found {dict(norms)}')
    return math.sqrt(d) / norm


def _number(tensor: np.ndarray) -> float:
    return float(tensor.reshape(-1)[0]) if tensor.size == 1 else math.nan


def _either(tensors: Tensors, name: str, other: str) -> np.ndarray:
    return tensors[name] if name in tensors else tensor_named(tensors, other)
