"""Probe files: what is written reads back, and what does not hold together is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from actscope.errors import ProbeError
from actscope.probes import Probe, ProbeInfo, load_probe, load_probes, save_probe


def probe(**changes: object) -> Probe:
    info = ProbeInfo(id="danger", site="layers.3.resid_post", activation="sigmoid", bias=0.5, threshold=0.9, fpr=0.01)
    rng = np.random.default_rng(0)
    weight, inputs = rng.normal(size=16).astype(np.float32), rng.normal(size=(4, 16)).astype(np.float32)
    plain = Probe(msgspec.structs.replace(info, **changes), weight)
    return Probe(plain.info, weight, inputs, plain.score(inputs))


def test_a_saved_probe_reads_back_whole(tmp_path: Path) -> None:
    save_probe(probe(), tmp_path / "danger.safetensors")
    found = load_probe(tmp_path / "danger.safetensors")
    assert found.info == probe().info
    np.testing.assert_array_equal(found.weight, probe().weight)


def test_a_probe_whose_test_vectors_score_otherwise_is_refused(tmp_path: Path) -> None:
    good = probe()
    save_probe(
        Probe(msgspec.structs.replace(good.info, bias=-3.0), good.weight, good.test_inputs, good.test_scores),
        tmp_path / "p.safetensors",
    )
    with pytest.raises(ProbeError, match="test vectors"):
        load_probe(tmp_path / "p.safetensors")


def test_a_plain_json_vector_takes_its_layer_from_its_name(tmp_path: Path) -> None:
    path = tmp_path / "enc_19_refusal.json"
    path.write_text(json.dumps({"vector": [0.5] * 8}))
    found = load_probe(path)
    assert (found.id, found.info.site, found.info.activation) == ("refusal", "layers.19.resid_post", "relu")


def test_the_fields_own_json_keys_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "feature.json"
    theirs = {"modelId": "gpt2-small", "layer": "7-resid-pre", "index": 3, "encoder_bias": -0.25}
    path.write_text(json.dumps({**theirs, "vector": [1.0, 2.0], "max_activation": 40.0}))
    found = load_probe(path)
    assert found.info.site == "layers.7.resid_pre"
    assert found.info.bias == -0.25
    assert found.info.range == (0.0, 40.0)


def test_a_range_that_is_not_stated_is_not_made_up(tmp_path: Path) -> None:
    """Only a sigmoid's scores have a range of their own. Read, saved and read again, the range is still unknown."""
    path = tmp_path / "enc_1_raw.json"
    path.write_text(json.dumps({"vector": [0.5] * 8, "activation": "identity"}))
    save_probe(load_probe(path), tmp_path / "raw.safetensors")
    for found in (load_probe(path).info, load_probe(tmp_path / "raw.safetensors").info):
        assert (found.range, found.display_range, found.signed) == (None, None, False)
    assert (probe().info.range, probe().info.display_range) == (None, (0.0, 1.0))
    signed = msgspec.structs.replace(probe().info, range=(-4.0, 2.0))
    assert (signed.display_range, signed.signed) == ((-4.0, 2.0), True)


@pytest.mark.parametrize(
    ("said", "site"),
    [
        ({"layer": 12}, "layers.12.resid_post"),
        ({"layer": "12-attn-out"}, "layers.12.attn_out"),
        ({"layer": "12-mlp-out"}, "layers.12.mlp_out"),
        ({"layer": 12, "hookName": "blocks.12.hook_resid_pre"}, "layers.12.resid_pre"),
        ({"site": "final_norm", "layer": 3}, "final_norm"),
    ],
)
def test_a_vector_is_put_exactly_where_its_file_says(tmp_path: Path, said: dict[str, object], site: str) -> None:
    path = tmp_path / "feature.json"
    path.write_text(json.dumps({**said, "vector": [1.0]}))
    assert load_probe(path).info.site == site


def test_test_vectors_of_another_shape_are_refused() -> None:
    good = probe()
    with pytest.raises(ProbeError, match="test inputs of shape"):
        Probe(good.info, good.weight, good.test_inputs[:, :3], good.test_scores)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("enc_1_a.json", "{", "not JSON"),
        ("enc_1_a.json", '{"vector": "x"}', "vector"),
        ("enc_1_a.json", '{"vector": [1, "x"]}', "numbers only"),
        ("enc_1_a.json", '{"vector": [1e999]}', "not JSON|NaN or infinity"),
        ("enc_1_a.json", '{"vector": [1], "activation": "gelu"}', "gelu"),
        ("enc_1_a.json", '{"vector": [1], "treshold": 1}', "treshold"),
        ("enc_1_a.json", '{"vector": [1], "range": [1, 0]}', "range must rise"),
        ("f.json", '{"vector": [1], "layer": "12-resid-mid"}', "12-resid-mid"),
        ("f.json", '{"vector": [1], "layer": "5-gemmascope-mlp-16k"}', "gemmascope"),
        ("f.json", '{"vector": [1], "layer": "5-resid-pre", "hookName": "blocks.5.hook_resid_post"}', "different places"),
        ("enc_1_a.json", '{"vector": [1], "max_activation": "high"}', "max_activation"),
        ("somewhere.json", '{"vector": [1]}', "which layer"),
        ("a.safetensors", "junk", "safetensors"),
    ],
)  # fmt: skip
def test_a_bad_file_is_an_error_that_names_the_file_and_the_reason(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ProbeError, match=reason) as caught:
        load_probe(tmp_path / name)
    assert name in str(caught.value)


def test_a_safetensors_file_that_is_no_probe_is_refused(tmp_path: Path) -> None:
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ProbeError, match="not a probe"):
        load_probe(tmp_path / "x.safetensors")


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_probe(probe(), tmp_path / f"{name}.safetensors")
    with pytest.raises(ProbeError, match="second probe"):
        load_probes(tmp_path)
