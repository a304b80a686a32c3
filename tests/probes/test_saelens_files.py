"""Files that SAELens wrote, against SAELens's own `encode`; and older configs, against its formulas written down once more."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actscope.errors import ProbeError
from actscope.probes.sae import load_encoder

with warnings.catch_warnings():  # TransformerLens warns of its own modules while it is imported
    warnings.simplefilter("ignore")
    sae_lens = pytest.importorskip("sae_lens")

D, M, K = 16, 48, 6
ROWS = torch.randn(20, D, generator=torch.Generator().manual_seed(3)) * 3 + 1


def filled(sae: Any, seed: int = 0) -> Any:
    """The same SAE with random numbers in all its tensors, and thresholds above 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            value = torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim else 1.0)
            tensor.copy_(value.abs() if "threshold" in name else value)
    return sae


def sae_of(kind: str, **config: Any) -> Any:
    made = getattr(sae_lens, f"{kind}SAE")
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.5.hook_resid_post", model_name="llama")
    return filled(made(getattr(sae_lens, f"{kind}SAEConfig")(d_in=D, d_sae=M, metadata=metadata, **config)))


def same(path: Path, expected: torch.Tensor, site: str | None = "layers.5.resid_post") -> None:
    encoder = load_encoder(path)
    assert encoder.site == site
    assert (expected > 0).float().mean() > 0.02
    np.testing.assert_allclose(encoder.encode(ROWS.numpy()), expected.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("how", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Standard", {}),
        ("JumpReLU", {}),
        ("Gated", {}),
        ("TopK", {"k": K}),
        ("TopK", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_features_are_those_of_saelens(
    kind: str, config: dict[str, Any], how: str, shift: bool, tmp_path: Path
) -> None:
    sae = sae_of(kind, apply_b_dec_to_input=shift, normalize_activations=how, **config)
    sae.save_model(tmp_path)
    same(tmp_path, sae.encode(ROWS))


@pytest.mark.parametrize("kind", ["TopK", "BatchTopK", "MatryoshkaBatchTopK", "JumpReLU", "Gated", "Standard"])
def test_a_trained_sae_saved_for_inference_is_what_saelens_loads_from_it(kind: str, tmp_path: Path) -> None:
    """Decoder norms are folded then, and the config still says rescale_acts_by_decoder_norm: it is folded once."""
    extra: dict[str, Any] = {"k": K} if "TopK" in kind else {}
    if kind.startswith("Matryoshka"):
        extra["matryoshka_widths"] = [M // 2, M]
    training = getattr(sae_lens, f"{kind}TrainingSAE")
    sae = filled(training(getattr(sae_lens, f"{kind}TrainingSAEConfig")(d_in=D, d_sae=M, **extra)))
    sae.save_inference_model(tmp_path)
    same(tmp_path, sae_lens.SAE.load_from_disk(tmp_path).encode(ROWS), None)


def test_a_batch_topk_checkpoint_is_read_as_saelens_saves_it_for_inference(tmp_path: Path) -> None:
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=M, k=K)
    sae = filled(sae_lens.BatchTopKTrainingSAE(config))
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "final")
    same(tmp_path / "checkpoint", sae_lens.SAE.load_from_disk(tmp_path / "final").encode(ROWS), None)


def test_half_precision_weights_are_read_exactly(tmp_path: Path) -> None:
    sae = sae_of("JumpReLU")
    sae.to(dtype=torch.bfloat16).save_model(tmp_path)
    same(tmp_path, sae.to(dtype=torch.float32).encode(ROWS))


def test_the_sae_in_a_runners_config_is_read(tmp_path: Path) -> None:
    """A config of LanguageModelSAERunnerConfig has the SAE's own under "sae"; read from the outside, a TopK is a relu."""
    sae = sae_of("TopK", k=K)
    sae.save_model(tmp_path)
    own = json.loads((tmp_path / "cfg.json").read_text()) | {"metadata": {}}
    outer = {"model_name": "llama", "hook_name": "blocks.2.hook_mlp_out", "d_in": D, "sae": own}
    (tmp_path / "cfg.json").write_text(json.dumps(outer))
    same(tmp_path, sae.encode(ROWS), "layers.2.mlp_out")
    del own["architecture"]
    (tmp_path / "cfg.json").write_text(json.dumps(outer | {"sae": own | {"activation_fn": "topk"}}))
    same(tmp_path, sae.encode(ROWS), "layers.2.mlp_out")


def old_folder(path: Path, sae: Any, **config: Any) -> Path:
    """A config as SAELens wrote it before version 6."""
    sae.save_model(path)
    wrote = {"hook_name": "blocks.5.hook_resid_post", "d_in": D, "d_sae": M, "dtype": "float32", "model_name": "llama"}
    (path / "cfg.json").write_text(json.dumps(wrote | config))
    return path


@pytest.mark.parametrize(
    "config",
    [
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {
            "architecture": "standard",
            "activation_fn": "topk",
            "activation_fn_kwargs": {"k": K},
            "sae_lens_version": "5.1.0",
        },
        {"architecture": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False},
    ],
)
def test_before_version_6_the_activation_function_says_topk(config: dict[str, Any], tmp_path: Path) -> None:
    path = old_folder(tmp_path, sae_of("TopK", k=K), **config)
    same(path, sae_lens.SAE.load_from_disk(path).encode(ROWS))


def test_old_hook_points_and_kinds_are_read_as_saelens_reads_them(tmp_path: Path) -> None:
    for kind, name in (("Standard", "standard"), ("Gated", "gated"), ("JumpReLU", "jumprelu")):
        path = old_folder(
            tmp_path / name, sae_of(kind), architecture=name, hook_name=None, hook_point="blocks.1.hook_mlp_out"
        )
        config = json.loads((path / "cfg.json").read_text())
        expected = sae_lens.SAE.load_from_disk(path)
        assert config["hook_name"] is None
        same(path, expected.encode(ROWS), "layers.1.mlp_out")


@pytest.mark.parametrize("kind", ["Standard", "Gated", "TopK"])
@pytest.mark.parametrize("shift", [True, False])
def test_centred_writing_weights_are_folded(kind: str, shift: bool, tmp_path: Path) -> None:
    """SAELens runs such an SAE on a model whose stream has no mean over d; ours is the model as it is."""
    sae = sae_of(kind, apply_b_dec_to_input=shift, **({"k": K} if kind == "TopK" else {}))
    sae.cfg.metadata.model_name = "gpt2-small"
    sae.save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    same(tmp_path, sae.encode(ROWS - ROWS.mean(dim=1, keepdim=True)))
    config["metadata"]["model_name"] = "gemma-2b"
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ProbeError, match="center_writing_weights"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "transcoder", "metadata": {"hook_name": "blocks.5.hook_mlp_in"}}, "transcoder.*predicts"),
        ({"architecture": "jumprelu_skip_transcoder"}, "transcoder"),
        ({"architecture": "temporal"}, "'temporal' is not computed"),
        ({"architecture": "abstopk"}, "'abstopk' is not computed"),
        ({"architecture": "batchtopk"}, "batchtopk SAE without a threshold"),
        (
            {"metadata": {"hook_name": "blocks.5.hook_resid_pre", "hook_name_out": "blocks.5.hook_mlp_out"}},
            "a transcoder from",
        ),
        ({"metadata": {"hook_name": "blocks.5.attn.hook_z"}}, "single attention heads"),
        ({"metadata": {"hook_name": "blocks.5.hook_attn_out", "hook_head_index": 3}}, "head 3"),
        ({"metadata": {}, "reshape_activations": "hook_z"}, "single attention heads"),
        ({"metadata": {"hook_name": "blocks.5.hook_resid_mid"}}, "between attention and MLP"),
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"normalize_activations": True}, "fold_activation_norm_scaling_factor"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"metadata": {"hook_name": 5}}, "not a JSON object of this layout"),
        ({"metadata": None, "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"architecture": "topk", "k": "1" * 6000}, "k must be a whole number"),
        ({"architecture": "topk", "k": 10**30}, "not a JSON object of this layout|k must be a whole number"),
        ({"architecture": "topk", "k": -3}, "k must be a whole number"),
        ({"architecture": "topk", "k": 3, "activation_fn_kwargs": {"signed": True}}, "signed topk"),
    ],
)
def test_what_would_give_wrong_numbers_is_refused_at_any_site(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    sae_of("Standard").save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text()) | change
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ProbeError, match=says):
        load_encoder(tmp_path, "layers.5.resid_post")


def test_a_file_for_one_point_is_refused_at_another(tmp_path: Path) -> None:
    sae = sae_of("Standard")
    sae.cfg.metadata.hook_name = "blocks.5.hook_attn_out"
    sae.save_model(tmp_path)
    with pytest.raises(
        ProbeError, match=r"for layers\.5\.attn_out, and layers\.5\.resid_post has rows of another kind"
    ):
        load_encoder(tmp_path, "layers.5.resid_post")
    assert load_encoder(tmp_path, "layers.5.attn_out").site == "layers.5.attn_out"


def test_a_finetuned_scale_of_one_is_no_scale(tmp_path: Path) -> None:
    sae = sae_of("Standard")
    sae.save_model(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    save_file(load_file(weights) | {"scaling_factor": torch.ones(M)}, weights)
    same(tmp_path, sae.encode(ROWS))
    save_file(load_file(weights) | {"scaling_factor": torch.full((M,), 1.5)}, weights)
    with pytest.raises(ProbeError, match="rescales its features"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("repository", "folder", "site"),
    [
        ("google/gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_68", "layers.5.resid_post"),
        ("google/gemma-scope-2b-pt-mlp", "layer_5/width_16k/average_l0_68", "layers.5.mlp_out"),
        ("google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", "embed"),
    ],
)
def test_gemma_scope_is_what_saelens_makes_of_it(
    repository: str, folder: str, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    path = tmp_path / repository / folder
    path.mkdir(parents=True)
    made = {name: tensor.numpy() for name, tensor in sae_of("JumpReLU").state_dict().items()}
    np.savez(path / "params.npz", allow_pickle=False, **made)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **asked: str(path / asked["filename"]))
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(repository, folder)
    theirs = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=D, d_sae=M, apply_b_dec_to_input=False))
    assert config["apply_b_dec_to_input"] is False
    if site == "embed":
        state["W_enc"] *= (config["d_in"] / D) ** 0.5  # it divides by the root of the released model's width
    theirs.load_state_dict(state)
    same(path, theirs.encode(ROWS), site)
