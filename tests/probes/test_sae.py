"""Encoders of autoencoders in the layouts in which they are published, against the formulas of those who publish them.

SAELens' own layout and the plain file are in tests/analysis/test_features.py too, on recorded rows.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actscope.errors import ProbeError
from actscope.probes.sae import SaeEncoder, load_encoder

D, M = 16, 40
ROWS = torch.randn(12, D, generator=torch.Generator().manual_seed(1))
#: Magnitude and bias of a gate.
R, G = torch.randn(2, M, generator=torch.Generator().manual_seed(2))


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(D, M, generator=g),
        "b_enc": torch.randn(M, generator=g),
        "b_dec": torch.randn(D, generator=g),
        "threshold": torch.rand(M, generator=g) * 3,
        "W_dec": torch.randn(M, D, generator=g),
    }


def linear(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same as torch's Linear layers hold them."""
    w = tensors()
    found = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    return {name: tensor.contiguous() for name, tensor in (found | more).items()}


def folder(path: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], config_name: str, name: str) -> Path:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / config_name).write_text(json.dumps(config))
    save_file(weights, path / name)
    return path


def features(z: torch.Tensor, kind: str, threshold: float | torch.Tensor = 0.0, k: int = 5) -> torch.Tensor:
    if kind == "topk":
        top = torch.relu(z).topk(k, dim=-1)
        return torch.zeros_like(z).scatter_(-1, top.indices, top.values)
    return torch.relu(z) * (z > threshold)


def equal(encoder: SaeEncoder, expected: torch.Tensor, site: str | None) -> None:
    assert encoder.site == site
    np.testing.assert_allclose(encoder.encode(ROWS.numpy()), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_gemma_scope_is_jumprelu_without_a_shift_and_its_path_names_its_site(tmp_path: Path) -> None:
    w = {name: tensor.numpy() for name, tensor in tensors().items()}
    path = (
        tmp_path / "models--google--gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71" / "params.npz"
    )
    path.parent.mkdir(parents=True)
    np.savez(path, allow_pickle=False, **w)
    expected = features(ROWS @ tensors()["W_enc"] + tensors()["b_enc"], "jumprelu", tensors()["threshold"])
    equal(load_encoder(path), expected, "layers.20.resid_post")
    equal(load_encoder(path.parent), expected, "layers.20.resid_post")
    elsewhere = tmp_path / "params.npz"
    elsewhere.write_bytes(path.read_bytes())
    equal(load_encoder(elsewhere), expected, None)
    equal(load_encoder(elsewhere, "layers.3.mlp_out"), expected, "layers.3.mlp_out")


def test_gemma_scope_2_says_what_it_reads(tmp_path: Path) -> None:
    w = tensors()
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.12.output"}
    weights = {"w_enc": w["W_enc"], "b_enc": w["b_enc"], "threshold": w["threshold"], "b_dec": w["b_dec"]}
    path = folder(tmp_path / "g2", config, weights, "config.json", "params.safetensors")
    expected = features(ROWS @ w["W_enc"] + w["b_enc"], "jumprelu", w["threshold"])
    equal(load_encoder(path), expected, "layers.12.resid_post")


def test_llama_scope_is_scaled_by_norms_as_openmoss_loads_it(tmp_path: Path) -> None:
    """On the stream's own scale: bias over s, decoder's norms folded in, and the threshold on what comes out."""
    w, s = tensors(), D**0.5 / 2.5
    config = {
        "d_model": D, "hook_point_in": "blocks.8.hook_resid_post", "act_fn": "jumprelu", "jump_relu_threshold": 0.8,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 2.5, "out": 2.5}, "top_k": 50,
        "apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    weights = linear(**{"decoder.bias": w["b_dec"]})
    path = folder(tmp_path / "L8R", config, weights, "hyperparams.json", "checkpoints/final.safetensors")
    z = (ROWS @ w["W_enc"] + w["b_enc"] / s) * w["W_dec"].norm(dim=1)
    equal(load_encoder(path), features(z, "jumprelu", 0.8), "layers.8.resid_post")
    config["dataset_average_activation_norm"] = {"in": 0}
    folder(path, config, weights, "hyperparams.json", "checkpoints/final.safetensors")
    with pytest.raises(ProbeError, match="dataset_average_activation_norm"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("gemma-scope-2b-pt-att", "layer_5"), "single attention heads"),
        (("gemma-scope-2b-pt-transcoders", "layer_5"), "transcoders"),
        (("gemma-scope-2b-pt-att",), "single attention heads"),
    ],
)
def test_gemma_scopes_of_heads_and_transcoders_are_refused_at_any_site(
    folders: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    """-att is trained on hook_z, and a transcoder on the MLP's input: neither is a site, whatever the user names."""
    path = tmp_path.joinpath(*folders, "width_16k")
    path.mkdir(parents=True)
    np.savez(path / "params.npz", allow_pickle=False, **{name: tensor.numpy() for name, tensor in tensors().items()})
    with pytest.raises(ProbeError, match=says):
        load_encoder(path, "layers.5.attn_out")


def test_gemma_scope_mlp_and_embedding_have_their_sites(tmp_path: Path) -> None:
    """The embedding's encoder reads the scaled embedding: W_enc / sqrt(d), as SAELens 6.54 loads it (gemma_2 loader)."""
    w = tensors()
    for name, site, scale in (
        ("gemma-scope-9b-it-mlp/layer_3/width_16k", "layers.3.mlp_out", 1.0),
        ("gemma-scope-2b-pt-res/embedding/width_4k", "embed", D**-0.5),
    ):
        path = tmp_path / name
        path.mkdir(parents=True)
        np.savez(path / "params.npz", allow_pickle=False, **{name: tensor.numpy() for name, tensor in w.items()})
        equal(load_encoder(path), features(ROWS @ w["W_enc"] * scale + w["b_enc"], "jumprelu", w["threshold"]), site)


@pytest.mark.parametrize(
    ("config", "folder_name", "expected"),
    [
        ({"hf_hook_point_in": "model.layers.9.post_feedforward_layernorm.output"}, "x", "layers.9.mlp_out"),
        ({"hf_hook_point_in": "model.layers.9.self_attn.o_proj.input"}, "x", "single attention heads"),
        ({"hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output"}, "x", "transcoders"),
        (
            {"hf_hook_point_in": "model.layers.9.output", "hf_hook_point_out": "model.layers.10.output"},
            "x",
            "transcoder",
        ),
        (None, "resid_post_all/layer_9_width_16k_l0_small", "layers.9.resid_post"),
        (None, "mlp_out/layer_9_width_16k", "layers.9.mlp_out"),
        (None, "attn_out/layer_9_width_16k", "single attention heads"),
        (None, "transcoder_all/layer_9_width_16k", "transcoders"),
    ],
)
def test_gemma_scope_2_reads_what_its_config_or_its_folder_names(
    config: dict[str, str] | None, folder_name: str, expected: str, tmp_path: Path
) -> None:
    w, path = tensors(), tmp_path / folder_name
    path.mkdir(parents=True)
    if config is not None:
        (path / "config.json").write_text(
            json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-4b"} | config)
        )
    save_file({"w_enc": w["W_enc"], "b_enc": w["b_enc"], "threshold": w["threshold"]}, path / "params.safetensors")
    if expected.startswith("layers."):
        equal(load_encoder(path), features(ROWS @ w["W_enc"] + w["b_enc"], "jumprelu", w["threshold"]), expected)
    else:
        with pytest.raises(ProbeError, match=expected):
            load_encoder(path, "layers.9.resid_post")


@pytest.mark.parametrize(
    ("name", "transcode", "site"),
    [
        ("layers.10", False, "layers.10.resid_post"),
        ("layers.3.mlp", False, "layers.3.mlp_out"),
        ("layers.3.attention", False, "layers.3.attn_out"),
        ("layers.3", True, "layers.3.resid_pre"),
    ],
)
def test_sparsify_is_topk_and_a_transcoder_is_not_shifted(
    name: str, transcode: bool, site: str | None, tmp_path: Path
) -> None:
    w = tensors()
    config = {"d_in": D, "k": 5, "activation": "topk", "transcode": transcode}
    path = folder(tmp_path / name, config, linear(b_dec=w["b_dec"]), "cfg.json", "sae.safetensors")
    z = (ROWS - (0 if transcode else w["b_dec"])) @ w["W_enc"] + w["b_enc"]
    equal(load_encoder(path), features(z, "topk"), site)


def test_sparsify_of_points_that_no_site_reads_are_refused(tmp_path: Path) -> None:
    """A transcoder of an MLP reads the MLP's input. In Gemma 2 a norm stands behind the MLP's output."""
    config = {"d_in": D, "k": 5, "transcode": True}
    path = folder(tmp_path / "layers.3.mlp", config, linear(b_dec=torch.zeros(D)), "cfg.json", "sae.safetensors")
    with pytest.raises(ProbeError, match="transcoders"):
        load_encoder(path, "layers.3.mlp_out")
    folder(path, config | {"transcode": False}, linear(b_dec=torch.zeros(D)), "cfg.json", "sae.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": "google/gemma-2-2b"}))
    with pytest.raises(ProbeError, match="before its norm"):
        load_encoder(path)
    unnamed = folder(tmp_path / "x", config, linear(b_dec=torch.zeros(D)), "cfg.json", "sae.safetensors")
    with pytest.raises(ProbeError, match="does not name"):
        load_encoder(unnamed, "layers.3.resid_post")


@pytest.mark.parametrize(
    "kind",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
    ],
)
def test_dictionary_learning_is_read_by_its_class(kind: str, tmp_path: Path) -> None:
    w = tensors()
    trainer = {"dict_class": kind, "k": 5, "submodule_name": "resid_post_layer_8"}
    shifted = (ROWS - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    weights, expected = {
        "AutoEncoderNew": (linear(**{"decoder.bias": w["b_dec"]}), features(ROWS @ w["W_enc"] + w["b_enc"], "relu")),
        "GatedAutoEncoder": (
            {
                "encoder.weight": w["W_enc"].T.contiguous(),
                "decoder_bias": w["b_dec"],
                "r_mag": R,
                "gate_bias": G,
                "mag_bias": w["b_enc"],
            },
            torch.relu(R.exp() * ((ROWS - w["b_dec"]) @ w["W_enc"]) + w["b_enc"])
            * ((ROWS - w["b_dec"]) @ w["W_enc"] + G > 0),
        ),
        "AutoEncoder": (linear(bias=w["b_dec"]), features(shifted * w["W_dec"].norm(dim=1), "relu")),
        "AutoEncoderTopK": (linear(b_dec=w["b_dec"], threshold=torch.tensor(1.0)), features(shifted, "topk")),
        "BatchTopKSAE": (linear(b_dec=w["b_dec"], threshold=torch.tensor(1.5)), features(shifted, "jumprelu", 1.5)),
        "MatryoshkaBatchTopKSAE": (w | {"threshold": torch.tensor(1.5)}, features(shifted, "jumprelu", 1.5)),
        "JumpReluAutoEncoder": (w, features(ROWS @ w["W_enc"] + w["b_enc"], "jumprelu", w["threshold"])),
    }[kind]
    path = folder(tmp_path / "dl", {"trainer": trainer}, weights, "config.json", "ae.safetensors")
    equal(load_encoder(path), expected, "layers.8.resid_post")


def test_a_plain_file_with_test_vectors_is_checked_by_them(tmp_path: Path) -> None:
    w = tensors()
    expected = features((ROWS - w["b_dec"]) @ w["W_enc"] + w["b_enc"], "jumprelu", w["threshold"])
    given = w | {"test_inputs": ROWS, "test_features": expected}
    save_file(given, tmp_path / "right.safetensors", metadata={"site": "layers.1.resid_post"})
    equal(load_encoder(tmp_path / "right.safetensors"), expected, "layers.1.resid_post")
    save_file(given, tmp_path / "wrong.safetensors", metadata={"apply_b_dec_to_input": "false"})
    with pytest.raises(ProbeError, match="its own test vectors give other features"):
        load_encoder(tmp_path / "wrong.safetensors")
    save_file(given | {"test_inputs": ROWS[:3]}, tmp_path / "torn.safetensors")
    with pytest.raises(ProbeError, match="do not fit W_enc"):
        load_encoder(tmp_path / "torn.safetensors")


@pytest.mark.parametrize(
    ("layout", "config", "weights", "says"),
    [
        ("ae", {"trainer": {"dict_class": "CrossCoder"}}, linear(b_dec=torch.zeros(D)), "'CrossCoder'"),
        ("ae", {"trainer": {"dict_class": "GatedAutoEncoder"}}, linear(b_dec=torch.zeros(D)), "no tensor r_mag"),
        ("ae", {"trainer": [1]}, linear(), "not a JSON object of this layout"),
        (
            "ae",
            {"trainer": {"dict_class": "AutoEncoderTopK", "k": "9" * 5000}},
            linear(b_dec=torch.zeros(D)),
            "whole number",
        ),
        (
            "ae",
            {"trainer": {"dict_class": "BatchTopKSAE"}},
            linear(b_dec=torch.zeros(D), threshold=torch.tensor(-1.0)),
            "threshold was never set",
        ),
        ("sparsify", {"k": 5, "activation": "groupmax"}, linear(b_dec=torch.zeros(D)), "groupmax"),
        ("sparsify", {"k": 0}, linear(b_dec=torch.zeros(D)), "topk needs 1 <= k <= 40"),
        ("sparsify", {"k": 5}, linear(), "no tensor b_dec"),
        ("sparsify", {"k": 5}, {"decoder.bias": torch.zeros(D)}, "no tensor encoder.weight"),
        ("sparsify", {"k": 5}, linear(**{"encoder.bias": torch.zeros(3)}), "do not fit together"),
        ("sparsify", {"k": 5}, {"other": torch.zeros(3)}, "holds no encoder.*it has other"),
        ("gemma2", {"architecture": "topk"}, tensors(), 'expected "jump_relu"'),
        ("llama", {"norm_activation": "batch-wise"}, linear(), "batch-wise"),
    ],
)
def test_encoders_that_would_give_wrong_numbers_are_refused(
    layout: str, config: dict[str, Any], weights: dict[str, torch.Tensor], says: str, tmp_path: Path
) -> None:
    names = {
        "ae": ("config.json", "ae.safetensors"),
        "sparsify": ("cfg.json", "sae.safetensors"),
        "gemma2": ("config.json", "params.safetensors"),
        "llama": ("hyperparams.json", "final.safetensors"),
    }[layout]
    with pytest.raises(ProbeError, match=says):
        load_encoder(folder(tmp_path / "sae", config, weights, *names))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """Neither dictionary_learning's ae.pt nor an object array inside an npz."""
    (tmp_path / "dl").mkdir()
    (tmp_path / "dl" / "ae.pt").write_bytes(pickle.dumps(Bomb()))
    for path in (tmp_path / "dl", tmp_path / "dl" / "ae.pt"):
        with pytest.raises(ProbeError, match=r"ae.pt is a pickle.*ae.safetensors"):
            load_encoder(path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Bomb()], dtype=object))
    with pytest.raises(ProbeError, match="not a numpy archive of plain numbers"):
        load_encoder(tmp_path / "params.npz")


def test_files_that_are_damaged_or_hold_something_else_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", W_enc=np.zeros((D, M)), b_enc=np.zeros(M), threshold=np.zeros(M, int))
    with pytest.raises(ProbeError, match="tensor threshold is int64"):
        load_encoder(tmp_path / "whole.npz")
    raw = (tmp_path / "whole.npz").read_bytes()
    for size in range(0, len(raw), 97):
        (tmp_path / "torn.npz").write_bytes(raw[:size])
        with pytest.raises(ProbeError, match=r"torn\.npz"):
            load_encoder(tmp_path / "torn.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match="no autoencoder in this folder"):
        load_encoder(tmp_path / "empty")
    (tmp_path / "empty" / "hyperparams.json").write_text("[]")
    with pytest.raises(ProbeError, match="is not a JSON object"):
        load_encoder(tmp_path / "empty")
