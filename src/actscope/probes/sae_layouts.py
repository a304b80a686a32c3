"""Published layouts of sparse autoencoders; each function reads one of them into an `SaeEncoder`.

A setting that changes the numbers and is not implemented is an error: a plausible number from the wrong formula is worse than
none. Sources: SAELens 6.54 (`loading/pretrained_sae_loaders.py`, `saes/`), sparsify 1.3 (`sparse_coder.py`), dictionary_learning
0.1 (`dictionary.py`, `trainers/`) and OpenMOSS's Language-Model-SAEs of November 2024 (`sae.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from actscope.errors import ProbeError, SiteError
from actscope.probes.checkpoint import read_json, read_npz, read_safetensors
from actscope.probes.encoder import SaeEncoder
from actscope.sites import Site

Tensors = dict[str, np.ndarray]

_NAMES = ("W_enc", "b_enc", "b_dec", "threshold", "log_threshold", "test_inputs", "test_features")
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_POINTS = {
    "hook_resid_pre": "resid_pre", "hook_resid_post": "resid_post", "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out",
}  # fmt: skip


def plain(path: Path, site: str | None) -> SaeEncoder:
    """Read one `.safetensors` file: `W_enc` [d, m], `b_enc` [m], and optionally `b_dec` [d] and `threshold` [m].

    The metadata may have `activation` (relu, jumprelu, topk), `k`, `site` and `apply_b_dec_to_input`. If the file has
    `test_inputs` [n, d] and `test_features` [n, m], the inputs are encoded and compared with the features.
    """
    metadata, tensors = read_safetensors(path, _NAMES)
    kind = metadata.get("activation", "jumprelu" if "threshold" in tensors else "relu")
    applied = metadata.get("apply_b_dec_to_input", "true").lower() not in ("false", "0")
    encoder = build(path.stem, tensors, kind, metadata.get("k", 0), site or metadata.get("site"), shift=applied)
    _verify(encoder, tensors)
    return encoder


def saelens(path: Path, site: str | None) -> SaeEncoder:
    """Read SAELens's layout: `cfg.json` and `sae_weights.safetensors`."""
    config = read_json(path / "cfg.json")
    _, tensors = read_safetensors(path / "sae_weights.safetensors", _NAMES)
    for key in ("rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if config.get(key):
            raise ProbeError(f'cfg.json sets "{key}", which is not computed here')
    metadata = config.get("metadata") or config.get("meta") or {}
    hook = str(config.get("hook_name") or metadata.get("hook_name") or "")
    return build(
        path.name,
        tensors,
        _saelens_kind(config, tensors),
        config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k", 0),
        site or site_of_hook(hook),
        shift=bool(config.get("apply_b_dec_to_input", True)),
        normalisation=config.get("normalize_activations") or "none",
    )


def _saelens_kind(config: Mapping[str, object], tensors: Tensors) -> str:
    kind = str(config.get("architecture", "standard"))
    if kind == "standard":
        return str(config.get("activation_fn_str") or config.get("activation_fn") or "relu")
    if kind in ("batchtopk", "matryoshka_batchtopk") and "threshold" in tensors:
        return "jumprelu"  # as SAELens itself runs them
    return kind


def gemma_scope(path: Path, site: str | None) -> SaeEncoder:
    """Read Gemma Scope 1 (arXiv:2408.05147): `params.npz`, JumpReLU. b_dec is not subtracted from the input.

    There is no config. For encoders of the residual stream the path (`gemma-scope-…-res/layer_20/…`) gives the site.
    """
    folders = path.absolute().parent.parts
    if "embedding" in folders:
        raise ProbeError("an encoder of embeddings, whose input is scaled: not computed here")
    layer = next((m[1] for part in reversed(folders) if (m := re.fullmatch(r"layer_(\d+)", part))), None)
    of_stream = any(re.search(r"gemma-scope-\w+-(pt|it)-res", part) for part in folders)
    said = f"layers.{int(layer)}.resid_post" if layer and of_stream else None
    return _gemma(path, read_npz(path, ("W_enc", "w_enc", "b_enc", "threshold", "scaling_factor")), site or said)


def gemma_scope_2(path: Path, site: str | None) -> SaeEncoder:
    """Read Gemma Scope 2: `config.json` and `params.safetensors`, JumpReLU as in Gemma Scope 1."""
    config = read_json(path / "config.json")
    if config.get("architecture") != "jump_relu":
        raise ProbeError(f'config.json: "architecture" is {config.get("architecture")!r}; expected "jump_relu"')
    _, tensors = read_safetensors(path / "params.safetensors", ("w_enc", "W_enc", "b_enc", "threshold"))
    match = re.fullmatch(r"model\.layers\.(\d+)\.output", str(config.get("hf_hook_point_in")))
    return _gemma(path, tensors, site or (f"layers.{int(match[1])}.resid_post" if match else None))


def _gemma(path: Path, tensors: Tensors, site: str | None) -> SaeEncoder:
    if not np.allclose(tensors.pop("scaling_factor", np.ones(1)), 1):
        raise ProbeError("its features are scaled by a finetuned factor, which is not computed here")
    if "w_enc" in tensors:
        tensors["W_enc"] = tensors.pop("w_enc")
    return build(path.parent.name if path.is_file() else path.name, tensors, "jumprelu", 0, site)


def llama_scope(path: Path, site: str | None) -> SaeEncoder:
    """Read Llama Scope (arXiv:2410.20526): `hyperparams.json` and `checkpoints/final.safetensors` (or `final.safetensors`).

    The formula is OpenMOSS's: with s = sqrt(d) / average norm of the input, features = act((x @ W + b / s) * |decoder row|). The
    threshold applies to that product, so features are on the scale of the stream. (Those of SAELens are s times larger.)
    """
    config = read_json(path / "hyperparams.json")
    weights = path / "checkpoints" / "final.safetensors"
    _, tensors = read_safetensors(weights if weights.exists() else path / weights.name, _LINEAR)
    w, b = _linear(tensors)
    norm = str(config.get("norm_activation", "dataset-wise"))
    if config.get("use_glu_encoder") or norm not in ("dataset-wise", "inference", "token-wise"):
        raise ProbeError(
            f"hyperparams.json: norm_activation {norm!r}, use_glu_encoder {config.get('use_glu_encoder', False)}: "
            "not computed here"
        )
    into, out = _openmoss_scales(config, w.shape[0]) if norm == "dataset-wise" else (1.0, 1.0)
    size = np.ones(w.shape[1], np.float32)
    if config.get("sparsity_include_decoder_norm", True):
        size = np.linalg.norm(_tensor(tensors, "decoder.weight"), axis=0).astype(np.float32) * np.float32(into / out)
    kind, threshold = str(config.get("act_fn", "jumprelu")).lower(), float(config.get("jump_relu_threshold") or 0)
    if kind == "topk" and threshold > 0:
        kind = "jumprelu"  # as OpenMOSS itself runs them
    shift = bool(config.get("use_decoder_bias", True) and config.get("apply_decoder_bias_to_pre_encoder", True))
    found: Tensors = {
        "W_enc": w * size,
        "b_enc": b / np.float32(into) * size,
        "threshold": np.full(len(b), threshold, np.float32),
    }
    if shift:
        found["b_dec"] = _tensor(tensors, "decoder.bias") / np.float32(out)
    return build(
        path.name,
        found,
        kind,
        config.get("top_k", 0),
        site or site_of_hook(str(config.get("hook_point_in", ""))),
        shift=shift,
        normalisation="constant_norm_rescale" if norm == "token-wise" else "none",
    )


def _openmoss_scales(config: Mapping[str, object], d: int) -> tuple[float, float]:
    norms = config.get("dataset_average_activation_norm")
    match norms:
        case {"in": int() | float() as into, "out": int() | float() as out} if into > 0 and out > 0:
            return math.sqrt(d) / into, math.sqrt(d) / out
    raise ProbeError(
        f'hyperparams.json: "dataset_average_activation_norm" must be {{"in": number, "out": number}}, found {norms!r}'
    )


def sparsify(path: Path, site: str | None) -> SaeEncoder:
    """Read EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, TopK, in a folder named after the module that it reads."""
    config = read_json(path / "cfg.json")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        raise ProbeError(f"cfg.json: activation {config.get('activation', 'signed topk')!r} is not computed here")
    _, tensors = read_safetensors(path / "sae.safetensors", (*_LINEAR, "b_dec"))
    w, b = _linear(tensors)
    transcodes = bool(config.get("transcode"))  # a transcoder reads the module's input; b_dec is not subtracted
    match = re.fullmatch(r"(?:layers|h)\.(\d+)(\.mlp)?", path.name)
    said = f"layers.{int(match[1])}.{'mlp_out' if match[2] else 'resid_post'}" if match and not transcodes else None
    found = {"W_enc": w, "b_enc": b} | ({} if transcodes else {"b_dec": _tensor(tensors, "b_dec")})
    return build(path.name, found, "topk", config.get("k", 0), site or said, shift=not transcodes)


def dictionary_learning(path: Path, site: str | None) -> SaeEncoder:
    """Read dictionary_learning: `config.json` and `ae.safetensors`.

    The library itself writes `ae.pt`, a pickle, which is refused.
    """
    if not (path / "ae.safetensors").exists():
        raise ProbeError(
            "ae.pt is a pickle, which can run code when it is opened; write its tensors to ae.safetensors beside it "
            "(safetensors.torch.save_file), in an environment where you trust the file"
        )
    trainer = read_json(path / "config.json").get("trainer") or {}
    wanted = (*_LINEAR, "W_enc", "b_enc", "b_dec", "bias", "threshold")
    _, tensors = read_safetensors(path / "ae.safetensors", wanted)
    kind = str(trainer.get("dict_class"))
    match = re.fullmatch(r"(resid_pre|resid_post|attn_out|mlp_out)_layer_(\d+)", str(trainer.get("submodule_name")))
    said = site or (f"layers.{int(match[2])}.{match[1]}" if match else None)
    if kind == "JumpReluAutoEncoder":
        return build(path.name, tensors, "jumprelu", 0, said)
    w, b = _linear(tensors)
    if kind == "AutoEncoder":  # the library rescales the decoder to unit norm at load
        size = np.linalg.norm(_tensor(tensors, "decoder.weight"), axis=0).astype(np.float32)
        found = {"W_enc": w * size, "b_enc": b * size, "b_dec": _tensor(tensors, "bias")}
        return build(path.name, found, "relu", 0, said, shift=True)
    found = {"W_enc": w, "b_enc": b, "b_dec": _tensor(tensors, "b_dec")}
    if kind == "AutoEncoderTopK":
        return build(path.name, found, "topk", trainer.get("k", 0), said, shift=True)
    if kind not in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        raise ProbeError(f"config.json: dict_class {kind!r} is not computed here")
    threshold = float(_tensor(tensors, "threshold").reshape(-1)[0])
    if threshold < 0:
        raise ProbeError(
            f"its threshold was never set ({threshold}), and without it a row's features depend on its batch"
        )
    return build(
        path.name, found | {"threshold": np.full(len(b), threshold, np.float32)}, "jumprelu", 0, said, shift=True
    )


def build(
    name: str,
    tensors: Tensors,
    kind: str,
    k: object,
    site: str | None,
    *,
    shift: bool = False,
    normalisation: str = "none",
) -> SaeEncoder:
    """Return an encoder of `W_enc`, `b_enc` and, if `shift`, `b_dec` (zeros if absent).

    Raises ProbeError if the tensors do not fit together.
    """
    absent = {"W_enc", "b_enc"} - tensors.keys()
    if absent:
        raise ProbeError(f"no tensor {', '.join(sorted(absent))}; it has {', '.join(sorted(tensors)[:8])}")
    _check_site(site)
    weight, bias, kind = tensors["W_enc"], tensors["b_enc"], kind.replace("-", "").lower()
    threshold = tensors.get("threshold")
    if threshold is None and "log_threshold" in tensors:
        threshold = np.exp(tensors["log_threshold"])
    if kind == "jumprelu" and threshold is None:
        raise ProbeError(f"{name}: jumprelu needs thresholds, and it has none")
    return SaeEncoder(
        np.ascontiguousarray(weight, np.float32),
        bias,
        tensors["b_dec"] if shift and "b_dec" in tensors else np.zeros(weight.shape[:1], np.float32),
        threshold if kind == "jumprelu" and threshold is not None else np.zeros(bias.shape, np.float32),
        kind,
        int(str(k)) if kind == "topk" and str(k).isdecimal() else 0,
        site,
        name,
        str(normalisation),
    )


def site_of_hook(hook: str) -> str | None:
    """Return the site of a TransformerLens hook: `blocks.8.hook_resid_pre` is `layers.8.resid_pre`. None for others."""
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_\w+)", hook)
    return f"layers.{int(match[1])}.{_POINTS[match[2]]}" if match and match[2] in _POINTS else None


def _check_site(site: str | None) -> None:
    try:
        if site is not None:
            Site.parse(site)
    except SiteError as error:
        raise ProbeError(str(error)) from error


def _tensor(tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise ProbeError(f"no tensor {name}; it has {', '.join(sorted(tensors))}")
    return tensors[name]


def _linear(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Return weight [d, m] and bias [m], from `W_enc` and `b_enc` or from torch's Linear(d, m).

    The weight of a Linear is [m, d] and is transposed.
    """
    if "W_enc" in tensors:
        return tensors["W_enc"], _tensor(tensors, "b_enc")
    weight, bias = _tensor(tensors, "encoder.weight"), _tensor(tensors, "encoder.bias")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ProbeError(f"encoder.weight {list(weight.shape)} and encoder.bias {list(bias.shape)} do not fit together")
    decoder = tensors.get("decoder.weight")
    if decoder is not None and decoder.shape != weight.shape[::-1]:
        raise ProbeError(f"decoder.weight must be {list(weight.shape[::-1])}, found {list(decoder.shape)}")
    return weight.T, bias


def _verify(encoder: SaeEncoder, tensors: Tensors) -> None:
    if "test_inputs" not in tensors or "test_features" not in tensors:
        return
    rows, expected = tensors["test_inputs"], tensors["test_features"]
    if rows.ndim != 2 or rows.shape[1] != encoder.d or expected.shape != (len(rows), encoder.n_features):
        raise ProbeError(f"test_inputs {list(rows.shape)} and test_features {list(expected.shape)} do not fit W_enc")
    worst = float(np.max(np.abs(encoder.encode(rows) - expected) / (np.abs(expected) + 1.0), initial=0.0))
    if not worst <= 1e-3:
        raise ProbeError(
            f"its own test vectors give other features (worst relative difference {worst:.2g}); the file is damaged or was "
            "made for another convention"
        )
