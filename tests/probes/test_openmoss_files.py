"""Later SAEs of OpenMOSS, against the formulas of Language-Model-SAEs (llamascopium, `models/sae.py` at 95281ac7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actscope.errors import ProbeError
from actscope.probes.sae import load_encoder

D, M = 16, 40
HOOK = "blocks.8.hook_resid_post"
ROWS = torch.randn(12, D, generator=torch.Generator().manual_seed(1)) * 5
CONFIG: dict[str, Any] = {
    "sae_type": "sae", "d_model": D, "expansion_factor": 2.5, "hook_point_in": HOOK, "hook_point_out": HOOK,
    "act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": 5,
}  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "W_E": torch.randn(D, M, generator=g),
        "b_E": torch.randn(M, generator=g),
        "W_D": torch.randn(M, D, generator=g),
        "b_D": torch.randn(D, generator=g),
        "activation_function.log_jumprelu_threshold": torch.randn(M, generator=g),
        f"dataset_average_activation_norm.{HOOK}": torch.tensor(18.5),
    }


def written(
    path: Path, weights: dict[str, torch.Tensor], where: str = "sae_weights.safetensors", **change: Any
) -> Path:
    (path / where).parent.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | change))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / where)
    return path


def expected(w: dict[str, torch.Tensor], scale: float, *, with_norm: bool = True) -> torch.Tensor:
    """`normalize_activations` and then `encode`, with JumpReLU."""
    z = (ROWS * scale) @ w["W_E"] + w["b_E"]
    size = w["W_D"].norm(dim=1) if with_norm else torch.ones(M)
    gate = (z * size) > w["activation_function.log_jumprelu_threshold"].exp()
    return z * size * gate / size


def same(path: Path, features: torch.Tensor) -> None:
    encoder = load_encoder(path)
    assert encoder.site == "layers.8.resid_post"
    np.testing.assert_allclose(encoder.encode(ROWS.numpy()), features.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_norm", [True, False])
def test_rows_are_scaled_by_the_norm_in_the_weights_file(with_norm: bool, tmp_path: Path) -> None:
    w = tensors()
    path = written(tmp_path, w, sparsity_include_decoder_norm=with_norm)
    same(path, expected(w, D**0.5 / 18.5, with_norm=with_norm))


def test_a_standardised_sae_reads_the_rows_as_they_are(tmp_path: Path) -> None:
    w = tensors()
    same(written(tmp_path, w, where="checkpoints/final.safetensors", norm_activation="inference"), expected(w, 1.0))


def test_the_names_of_2025_are_read(tmp_path: Path) -> None:
    """Llama Scope R1-Distill: torch's Linear, transposed, and the threshold beside it."""
    w = tensors()
    linear = {
        "encoder.weight": w["W_E"].T, "encoder.bias": w["b_E"], "decoder.weight": w["W_D"].T, "decoder.bias": w["b_D"],
        "log_jumprelu_threshold": w["activation_function.log_jumprelu_threshold"],
    }  # fmt: skip
    path = written(tmp_path, linear, norm_activation="inference", apply_decoder_bias_to_pre_encoder=False)
    same(path, expected(w, 1.0))


def test_topk_needs_a_decoder_of_unit_norm(tmp_path: Path) -> None:
    """It chooses by activation times norm and gives the activation: where the norm is 1, that is a topk."""
    w = tensors()
    with pytest.raises(ProbeError, match="Fold the norms first"):
        load_encoder(written(tmp_path, w, act_fn="topk"))
    w["W_D"] /= w["W_D"].norm(dim=1, keepdim=True)
    z = torch.relu((ROWS * D**0.5 / 18.5) @ w["W_E"] + w["b_E"])
    top = z.topk(5, dim=1)
    same(written(tmp_path, w, act_fn="topk"), torch.zeros_like(z).scatter_(1, top.indices, top.values))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sae_type": "clt"}, "several points or layers"),
        ({"use_glu_encoder": True}, "sigmoid gate"),
        ({"norm_activation": "batch-wise"}, "'batch-wise' is not computed"),
        ({"act_fn": "batchtopk"}, "'batchtopk' is not computed"),
        ({"hook_point_in": "blocks.8.ln2.hook_normalized", "hook_point_out": "blocks.8.hook_mlp_out"}, "transcoders"),
        ({"hook_point_out": "blocks.8.hook_mlp_out"}, "a transcoder from"),
        ({"hook_point_in": "blocks.7.hook_resid_post", "hook_point_out": "blocks.7.hook_resid_post"}, "must be a number above 0"),
        ({"dataset_average_activation_norm": "1"}, "not a JSON object of this layout"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=says):
        load_encoder(written(tmp_path, tensors(), **change))


def test_weights_in_a_pickle_are_refused_with_the_command(tmp_path: Path) -> None:
    written(tmp_path, tensors()).joinpath("sae_weights.safetensors").rename(tmp_path / "sae_weights.pt")
    with pytest.raises(ProbeError, match=r"sae_weights\.pt is a pickle"):
        load_encoder(tmp_path)
