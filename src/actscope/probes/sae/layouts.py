"""Further published layouts of SAEs; each function reads one of them into an `SaeEncoder`.

A setting that changes the numbers and is not implemented is an error: a plausible number from the wrong formula is worse than
none. Sources: Gemma Scope (arXiv:2408.05147), sparsify 1.3 (`sparse_coder.py`), dictionary_learning 0.1 (`dictionary.py`,
`trainers/`).
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.probes.checkpoint import read_config, read_npz, read_safetensors, refuse_pickle
from actscope.probes.encoder import SaeEncoder
from actscope.probes.hooks import hooked_site, stated_site
from actscope.probes.sae.building import LINEAR, Tensors, build, gated, linear, tensor_named, whole_number

_PLAIN = ("W_enc", "b_enc", "b_dec", "threshold", "log_threshold", "test_inputs", "test_features")
_GOODFIRE = ("encoder_linear.weight", "encoder_linear.bias")
_SCOPE_HOOKS = {
    "res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", "transcoders": "hook_mlp_in",
    "resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z", "transcoder": "hook_mlp_in",
    "clt": "hook_mlp_in", "crosscoder": "hook_mlp_in",
}  # fmt: skip


def plain(path: Path, site: str | None) -> SaeEncoder:
    """Read one `.safetensors` file: `W_enc` [d, m], `b_enc` [m], and optionally `b_dec` [d] and `threshold` [m].

    The metadata may have `activation` (relu, jumprelu, topk), `k`, `site` and `apply_b_dec_to_input`. The weights may have the
    names and the transposed form of other tools too, if the metadata has the activation: `encoder.weight` or
    `encoder_linear.weight` [m, d] with its bias, or `W_enc` [m, d]. If the file has `test_inputs` [n, d] and `test_features`
    [n, m], the inputs are encoded and compared with the features.
    """
    metadata, tensors, _ = read_safetensors(path, (*_PLAIN, *LINEAR, *_GOODFIRE))
    foreign = _renamed(tensors)
    if foreign and "activation" not in metadata:
        raise ProbeError(
            f"{foreign}, and the file does not say its activation; write it once more: save_file(tensors, file, metadata="
            '{"activation": "topk", "k": "50", "site": "layers.12.resid_post", "apply_b_dec_to_input": "false"}) (relu and '
            "jumprelu have no k)"
        )
    kind = metadata.get("activation", "jumprelu" if "threshold" in tensors else "relu")
    applied = metadata.get("apply_b_dec_to_input", "true").lower() not in ("false", "0")
    k = whole_number(metadata.get("k"), "metadata: k")
    encoder = build(path.stem, tensors, kind, k, stated_site(site, metadata.get("site")), shift=applied)
    _verify(encoder, tensors)
    return encoder


def _renamed(tensors: Tensors) -> str:
    """Bring the encoder of another tool to `W_enc` [d, m] and `b_enc`, in place. Return what was found, or ""."""
    weight, bias = tensors.get("W_enc"), tensors.get("b_enc")
    if weight is None:
        for name in ("encoder", "encoder_linear"):
            if f"{name}.weight" in tensors:
                parts = {f"encoder.{part}": tensor_named(tensors, f"{name}.{part}") for part in ("weight", "bias")}
                tensors["W_enc"], tensors["b_enc"] = linear(parts)
                return f"its weights are named {name}.weight"
    elif bias is not None and weight.ndim == 2 and bias.shape == weight.shape[:1] != weight.shape[1:]:
        tensors["W_enc"] = weight.T
        return f"its W_enc is [m, d], {list(weight.shape)}"
    return ""


def gemma_scope(path: Path, site: str | None) -> SaeEncoder:
    """Read Gemma Scope 1: `params.npz`, JumpReLU. b_dec is not subtracted from the input.

    There is no config. The path gives the site: `gemma-scope-…-res/layer_20/…`, or `-mlp`. Encoders of attention (`-att`) read
    hook_z, and transcoders the MLP's input: they are refused. Encoders of the embedding are of the scaled embedding, and are
    scaled as SAELens does.
    """
    file = path / "params.npz" if path.is_dir() else path
    folders = file.absolute().parent.parts
    said = _scope_site(folders)
    tensors = read_npz(file, ("W_enc", "w_enc", "b_enc", "threshold", "scaling_factor"))
    if "embedding" in folders:
        said, name = "embed", "w_enc" if "w_enc" in tensors else "W_enc"
        tensors[name] = tensor_named(tensors, name) / np.float32(np.sqrt(len(tensors[name])))
    return _gemma(file.parent.name, tensors, stated_site(site, said))


def gemma_scope_2(path: Path, site: str | None) -> SaeEncoder:
    """Read Gemma Scope 2: `params.safetensors`, JumpReLU as in Gemma Scope 1, and `config.json`, which some lack."""
    config = _GemmaConfig()
    if (path / "config.json").exists():
        config = read_config(path / "config.json", _GemmaConfig)
    if config.architecture != "jump_relu":
        raise ProbeError(f'config.json: "architecture" is {config.architecture!r}; expected "jump_relu"')
    into, out = config.hf_hook_point_in, config.hf_hook_point_out
    said = hooked_site(into, config.model_name or "gemma-3") if into else _scope_site(path.absolute().parts)
    if out not in (None, into):
        raise ProbeError(f"config.json: a transcoder from {into} to {out}; SAEs of one site are read here")
    names = ("w_enc", "W_enc", "b_enc", "threshold", "affine_skip_connection")
    tensors = read_safetensors(path / "params.safetensors", names).tensors
    if "affine_skip_connection" in tensors:
        raise ProbeError("a transcoder with a skip connection; SAEs of one site are read here")
    return _gemma(path.name, tensors, stated_site(site, said))


class _GemmaConfig(msgspec.Struct):
    """`config.json` of Gemma Scope 2."""

    architecture: str = "jump_relu"
    model_name: str | None = None
    hf_hook_point_in: str | None = None
    hf_hook_point_out: str | None = None


def _scope_site(folders: tuple[str, ...]) -> str | None:
    """Return the site that the folders of a Gemma Scope name, from the innermost on; None if they name none.

    Raises ProbeError if they name a point that no site reads.
    """
    layer = next((m[1] for part in reversed(folders) if (m := re.match(r"layer_(\d{1,9})(?:_|$)", part))), None)
    kinds = (
        m
        for part in reversed(folders)
        if (m := re.search(r"gemma-scope-[\w.]+-(?:pt|it)-(\w+)|^(\w+?)(?:_all)?$", part))
    )
    kind = next((k for m in kinds if (k := m[1] or m[2]) in _SCOPE_HOOKS), None)
    if kind is None:
        return None
    site = hooked_site(f"blocks.{layer or 0}.{_SCOPE_HOOKS[kind]}", "gemma-scope")
    return site if layer else None


def _gemma(name: str, tensors: Tensors, site: str | None) -> SaeEncoder:
    if not np.allclose(tensors.pop("scaling_factor", np.ones(1)), 1):
        raise ProbeError("its features are scaled by a finetuned factor, which is not computed here")
    if "w_enc" in tensors:
        tensors["W_enc"] = tensors.pop("w_enc")
    return build(name, tensors, "jumprelu", 0, site)


class _SparsifyConfig(msgspec.Struct):
    """`cfg.json` of sparsify."""

    k: int | str | None = None
    activation: str = "topk"
    signed: bool = False
    transcode: bool = False


class _SparsifyRun(msgspec.Struct):
    """`config.json` beside the folders of sparsify."""

    model: str | None = None


def sparsify(path: Path, site: str | None) -> SaeEncoder:
    """Read EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, TopK, in a folder named after the module that it reads.

    A transcoder reads the module's input and does not subtract b_dec: that of a whole block is read at resid_pre.
    """
    config, run = read_config(path / "cfg.json", _SparsifyConfig), _SparsifyRun()
    if (path.parent / "config.json").exists():
        run = read_config(path.parent / "config.json", _SparsifyRun)
    if config.activation != "topk" or config.signed:
        what = "signed topk" if config.signed else config.activation
        raise ProbeError(f"cfg.json: activation {what!r} is not computed here; expected topk")
    said = _sparsify_site(path.name, config.transcode, run.model or "")
    tensors = read_safetensors(path / "sae.safetensors", (*LINEAR, "b_dec")).tensors
    w, b = linear(tensors)
    found = {"W_enc": w, "b_enc": b} | ({} if config.transcode else {"b_dec": tensor_named(tensors, "b_dec")})
    k = whole_number(config.k, "cfg.json: k")
    return build(path.name, found, "topk", k, stated_site(site, said), shift=not config.transcode)


def _sparsify_site(folder: str, transcode: bool, model: str) -> str | None:
    """Return the site that a folder names. Raises ProbeError if no site reads that point, or a transcoder's is not named."""
    if re.match(r"(?:\w+\.)*(?:layers|h)\.\d", folder) or folder in ("embed_tokens", "wte"):
        return hooked_site(f"{folder}.input" if transcode else folder, model)
    if transcode:
        raise ProbeError(f"cfg.json: a transcoder of a module that its folder {folder!r} does not name, e.g. layers.3")
    return None


class _Trainer(msgspec.Struct):
    """The part `trainer` of dictionary_learning's `config.json`."""

    dict_class: str | None = None
    submodule_name: str | None = None
    k: int | str | None = None


class _DictionaryConfig(msgspec.Struct):
    """`config.json` of dictionary_learning."""

    trainer: _Trainer


_DICTIONARIES = (
    "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip


def dictionary_learning(path: Path, site: str | None) -> SaeEncoder:
    """Read dictionary_learning: `config.json` and `ae.safetensors`.

    The library itself writes `ae.pt`, a pickle, which is refused with the command that converts it. The features are those of
    its `encode`, after its own loading: the AutoEncoder's decoder is brought to unit norm.
    """
    if not (path / "ae.safetensors").exists():
        raise refuse_pickle("ae.pt")
    trainer = read_config(path / "config.json", _DictionaryConfig).trainer
    gate = ("decoder_bias", "r_mag", "gate_bias", "mag_bias")
    wanted = (*LINEAR, "W_enc", "b_enc", "b_dec", "bias", "threshold", *gate)
    tensors = read_safetensors(path / "ae.safetensors", wanted).tensors
    kind = str(trainer.dict_class)
    match = re.fullmatch(r"(resid_pre|resid_post|attn_out|mlp_out)_layer_(\d{1,9})", str(trainer.submodule_name))
    said = stated_site(site, f"layers.{int(match[2])}.{match[1]}" if match else None)
    if kind not in _DICTIONARIES:
        raise ProbeError(f"config.json: dict_class {kind!r} is not computed here; there are {', '.join(_DICTIONARIES)}")
    found, how = _dictionary(kind, tensors)
    k = whole_number(trainer.k, "config.json: k") if how == "topk" else 0
    return build(path.name, found, how, k, said, shift=True)


def _dictionary(kind: str, tensors: Tensors) -> tuple[Tensors, str]:
    """Return the encoder's tensors, and its activation, as the library's class of that name computes it."""
    if kind == "JumpReluAutoEncoder":  # it does not subtract b_dec
        return {name: tensor for name, tensor in tensors.items() if name != "b_dec"}, "jumprelu"
    if kind == "GatedAutoEncoder":
        weight, *gate = (tensor_named(tensors, n) for n in ("encoder.weight", "r_mag", "gate_bias", "mag_bias"))
        return {"b_dec": tensor_named(tensors, "decoder_bias")} | gated(weight.T, *gate), "jumprelu"
    w, b = linear(tensors)
    if kind == "AutoEncoderNew":
        return {"W_enc": w, "b_enc": b}, "relu"
    if kind == "AutoEncoder":
        size = np.linalg.norm(tensor_named(tensors, "decoder.weight"), axis=0).astype(np.float32)
        return {"W_enc": w * size, "b_enc": b * size, "b_dec": tensor_named(tensors, "bias")}, "relu"
    found = {"W_enc": w, "b_enc": b, "b_dec": tensor_named(tensors, "b_dec")}
    if kind == "AutoEncoderTopK":
        return found, "topk"
    threshold = tensor_named(tensors, "threshold")
    if threshold.size != 1 or threshold.reshape(-1)[0] < 0:
        raise ProbeError(
            f"its threshold was never set ({threshold.reshape(-1)[:1]}), and without it a row's features depend on its batch"
        )
    return found | {"threshold": np.full(len(b), threshold.reshape(-1)[0], np.float32)}, "jumprelu"


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
