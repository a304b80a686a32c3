"""Autoencoders and probes on real rows: the encoder is torch's, the statistics are the whole array's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors.torch import save_file
from support.recordings.real_model import Truth, record, run_model

from actscope.analysis import load_features, load_sae, measure_features
from actscope.analysis.sae import site_of_hook
from actscope.errors import ProbeError
from actscope.probes import Probe, ProbeInfo, save_probe
from actscope.recording.reading.recording import Recording

SITE = "layers.1.resid_post"
F = 96


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Recording]:
    truth = run_model()
    return truth, Recording.open(record(truth, tmp_path_factory.mktemp("rec") / "run.acts"))


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(64, F, generator=g),
        "b_enc": torch.randn(F, generator=g) - 1,
        "b_dec": 0.1 * torch.randn(64, generator=g),
        "W_dec": torch.randn(F, 64, generator=g),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def saelens(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir()
    (path / "cfg.json").write_text(
        json.dumps({"d_in": 64, "d_sae": F, "hook_name": "blocks.1.hook_resid_post"} | config)
    )
    save_file(tensors, path / "sae_weights.safetensors")
    return path


def reference(
    rows: torch.Tensor, w: dict[str, torch.Tensor], kind: str, k: int = 5, shift: bool = True
) -> torch.Tensor:
    """What SAELens computes, written down once more in torch."""
    z = (rows - (w["b_dec"].float() if shift else 0)) @ w["W_enc"].float() + w["b_enc"].float()
    if kind == "topk":
        top = torch.topk(z, k, dim=-1)
        return torch.zeros_like(z).scatter_(-1, top.indices, torch.relu(top.values))
    return torch.relu(z) * (z > w["threshold"]) if kind == "jumprelu" else torch.relu(z)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("shift", [True, False])
def test_encoders_of_saelens_compute_what_torch_computes(
    ran: tuple[Truth, Recording], tmp_path: Path, kind: str, shift: bool
) -> None:
    w = weights()
    if kind == "jumprelu":
        w["threshold"] = torch.rand(F) * 3
    path = saelens(
        tmp_path / "sae", w, architecture=kind, k=5, apply_b_dec_to_input=shift, normalize_activations="none"
    )
    sae = load_sae(path)
    assert (sae.site, sae.d, sae.n_features) == (SITE, 64, F)
    rows = ran[0].rows(SITE)
    np.testing.assert_allclose(
        sae.encode(rows.numpy()), reference(rows, w, kind, shift=shift).numpy(), rtol=1e-4, atol=1e-4
    )


def test_a_plain_file_says_its_site_and_activation_in_its_metadata_and_may_be_bfloat16(
    ran: tuple[Truth, Recording], tmp_path: Path
) -> None:
    w = weights(torch.bfloat16)
    save_file(w, tmp_path / "mine.safetensors", metadata={"site": SITE, "activation": "topk", "k": "5"})
    sae = load_sae(tmp_path / "mine.safetensors")
    rows = ran[0].rows(SITE)
    assert (sae.name, sae.site, sae.activation) == ("mine", SITE, "topk")
    np.testing.assert_allclose(sae.encode(rows.numpy()), reference(rows, w, "topk").numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_inputs_are_normalised_as_saelens_does(ran: tuple[Truth, Recording], tmp_path: Path, how: str) -> None:
    w, rows = weights(), ran[0].rows(SITE)
    sae = load_sae(saelens(tmp_path / "sae", w, normalize_activations=how))
    if how == "layer_norm":
        off = rows - rows.mean(dim=-1, keepdim=True)
        normal = off / (off.std(dim=-1, keepdim=True) + 1e-5)
    else:
        normal = rows * 8 / rows.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(sae.encode(rows.numpy()), reference(normal, w, "standard").numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ({"architecture": "gated"}, {}, "no tensor r_mag"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "not computed here"),
        ({"rescale_acts_by_decoder_norm": True, "architecture": "topk", "k": 5}, {"W_dec": None}, "no tensor W_dec"),
        ({"architecture": "topk", "k": F + 1}, {}, "topk needs 1 <= k <= 96"),
        ({"architecture": "jumprelu"}, {}, "jumprelu needs thresholds"),
        ({}, {"b_enc": torch.zeros(3)}, r"b_enc must be \[96\]"),
        ({}, {"W_enc": torch.full((64, F), torch.nan)}, "NaN or infinity"),
        ({}, {"W_enc": torch.zeros(64, F, dtype=torch.int32)}, "is I32"),
        ({}, {"W_enc": None}, "no tensor W_enc"),
    ],
)
def test_encoders_that_would_give_wrong_numbers_are_refused(
    config: dict[str, object], tensors: dict[str, Any], says: str, tmp_path: Path
) -> None:
    w = {name: tensor for name, tensor in (weights() | tensors).items() if tensor is not None}
    with pytest.raises(ProbeError, match=says):
        load_sae(saelens(tmp_path / "sae", w, **config))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ProbeError, match="not a safetensors file"):
        load_sae(tmp_path / "x.safetensors")
    with pytest.raises(ProbeError, match="cannot be read"):
        load_sae(tmp_path / "absent.safetensors")


def test_hooks_are_translated() -> None:
    assert site_of_hook("blocks.8.hook_resid_pre") == "layers.8.resid_pre"
    assert site_of_hook("blocks.8.attn.hook_z") is None


def test_statistics_and_the_sparse_file_are_those_of_the_whole_array(
    ran: tuple[Truth, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, recording = ran
    (features,) = load_features(recording, str(saelens(tmp_path / "sae", weights())))
    monkeypatch.setattr("actscope.analysis.features._BATCH_BYTES", 4 * F * 50)
    report = measure_features(recording, features, tmp_path / "out", top=4)
    whole = reference(truth.rows(SITE), weights(), "standard").numpy()
    fires = whole > 0
    assert report.rows == len(whole) and report.mean_fired == pytest.approx(fires.sum(axis=1).mean())
    assert report.dead == int((~fires.any(axis=0)).sum())
    assert {int(one.id) for one in report.stats} == set(np.flatnonzero(fires.any(axis=0)).tolist())
    for one in report.stats:
        column = whole[:, int(one.id)]
        assert one.fired == (column > 0).sum()
        assert one.mean == pytest.approx(column[column > 0].mean(), rel=1e-4)
        assert one.max == pytest.approx(column.max(), rel=1e-4)
        highest = np.sort(column)[::-1][: min(4, one.fired)]
        np.testing.assert_allclose([token.activation for token in one.top], highest, rtol=1e-3, atol=1e-4)
        best = int(column.argmax())
        assert (one.top[0].request, one.top[0].position) == (truth.requests()[best], truth.meta("position")[best])
        assert one.top[0].text == recording.texts[int(truth.meta("token_id")[best])]
    assert [one.fired for one in report.stats] == sorted((one.fired for one in report.stats), reverse=True)
    kept = {p.stem: np.load(p, allow_pickle=False) for p in (tmp_path / "out").glob("*.npy")}
    matrix = scipy.sparse.csr_matrix((kept["values"], kept["indices"], kept["indptr"]), shape=whole.shape)
    np.testing.assert_allclose(matrix.toarray(), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(kept["position"], truth.meta("position"))
    np.testing.assert_array_equal(kept["row_ids"], recording[SITE].row_ids)


def test_a_folder_of_probes_is_a_feature_set_for_each_site(ran: tuple[Truth, Recording], tmp_path: Path) -> None:
    truth, recording = ran
    rng = np.random.default_rng(0)
    vectors = {name: rng.standard_normal(64).astype(np.float32) for name in ("a", "b", "c", "lost")}
    sites = {"a": SITE, "b": SITE, "c": "layers.3.resid_post", "lost": "embed"}
    for name, vector in vectors.items():
        info = ProbeInfo(id=name, site=sites[name], activation="sigmoid", threshold=0.7 if name == "a" else None)
        save_probe(Probe(info, vector), tmp_path / "probes" / f"{name}.safetensors")
    sets = load_features(recording, str(tmp_path / "probes"))
    assert [(s.site, list(s.ids)) for s in sets] == [(SITE, ["a", "b"]), ("layers.3.resid_post", ["c"])]
    rows = truth.rows(SITE).numpy()
    for one in measure_features(recording, sets[0]).stats:
        scores = 1 / (1 + np.exp(-(rows @ vectors[one.id])))
        assert one.fired == (scores >= (0.7 if one.id == "a" else 0.5)).sum()


def test_features_that_do_not_fit_the_recording_are_refused_with_what_was_recorded(
    ran: tuple[Truth, Recording], tmp_path: Path
) -> None:
    _, recording = ran
    pre = saelens(tmp_path / "pre", weights(), hook_name="blocks.2.hook_resid_pre")
    assert load_features(recording, str(pre))[0].site == SITE  # what goes into block 2 came out of block 1
    assert load_features(recording, f"layers.0.resid_post={pre}")[0].site == "layers.0.resid_post"
    elsewhere = saelens(tmp_path / "mlp", weights(), hook_name="blocks.2.hook_mlp_out")
    nowhere = saelens(tmp_path / "none", weights(), hook_name="")
    narrow = saelens(tmp_path / "narrow", weights() | {"W_enc": torch.zeros(32, F), "b_dec": torch.zeros(32)})
    (tmp_path / "empty").mkdir()
    for path, says in (
        (elsewhere, "reads layers.2.mlp_out, which was not recorded; recorded are layers.0"),
        (nowhere, "does not say which site it reads; give SITE="),
        (narrow, "reads rows of width 32; layers.1.resid_post has width 64"),
        (tmp_path / "empty", "neither an autoencoder"),
        (tmp_path / "absent", "no such file"),
    ):
        with pytest.raises(ProbeError, match=says):
            load_features(recording, str(path))


def test_the_labels_of_an_sae_s_features_are_in_its_statistics(ran: tuple[Truth, Recording], tmp_path: Path) -> None:
    """`labels.json` beside the weights, an object from a feature's number to what it stands for."""
    folder = saelens(tmp_path / "sae", weights(), architecture="standard")
    [bare] = load_features(ran[1], str(folder))
    one, other = (stats.id for stats in measure_features(ran[1], bare).stats[:2])
    labels = {one: "' snow'", other: "the second word"}
    (folder / "labels.json").write_text(json.dumps(labels))
    [features] = load_features(ran[1], str(folder))
    stats = measure_features(ran[1], features).stats
    assert {one.id: one.label for one in stats} == {one.id: labels.get(one.id, "") for one in stats}
    assert len(stats) > 2


@pytest.mark.parametrize("content", ["[]", '{"a": "b"}', '{"1": 2}', '{"1": "a', "\xff", '{"²": "a"}'])
def test_labels_of_another_form_are_refused_with_the_file(
    ran: tuple[Truth, Recording], tmp_path: Path, content: str
) -> None:
    folder = saelens(tmp_path / "sae", weights(), architecture="standard")
    (folder / "labels.json").write_text(content, encoding="latin-1")
    with pytest.raises(ProbeError, match=r"labels\.json: expected an object from the numbers of features"):
        load_features(ran[1], str(folder))
