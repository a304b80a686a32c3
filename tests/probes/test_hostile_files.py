"""Files that lie about their size, hold no numbers, or nest without end: errors of ours, before anything is allocated."""

from __future__ import annotations

import json
import logging
import re
import shlex
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actscope.errors import ProbeError
from actscope.probes import Probe, ProbeInfo, load_probe, load_probes
from actscope.probes.sae import is_encoder, load_encoder

D, M = 8, 12


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(shape: list[int], start: int = 0, stop: int = 0, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


FOUR = np.ones(4, np.float32).tobytes()


@pytest.mark.parametrize(
    "raw",
    [
        safetensors({"W_enc": tensor([1 << 30, 1 << 30], 0, 16)}, FOUR),
        safetensors({"W_enc": tensor([1 << 40], 0, 1 << 42)}, FOUR),
        safetensors({"W_enc": tensor([4], 0, 16)}, FOUR, length=1 << 62),
        safetensors({"W_enc": tensor([4], 8, 24)}, FOUR),
        safetensors({"W_enc": tensor([-4], 0, 16)}, FOUR),
        safetensors(b'{"W_enc": %s, "W_enc": %s}' % ((json.dumps(tensor([2], 0, 8)).encode(),) * 2), FOUR),
        safetensors(b'{"a":' * 100000),
        safetensors({"__metadata__": {"k": 3}, "W_enc": tensor([4], 0, 16)}, FOUR),
        b"",
        b"\x80\x04",
    ],
)
def test_a_safetensors_header_that_lies_is_an_error(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    path.write_bytes(raw)
    for load in (load_encoder, load_probe):
        with pytest.raises(ProbeError, match=re.escape(str(path))):
            load(path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"W_enc": torch.full((D, M), torch.nan), "b_enc": torch.zeros(M)}, "NaN or infinity"),
        ({"W_enc": torch.zeros(D, M), "b_enc": torch.full((M,), torch.inf)}, "NaN or infinity"),
        ({"W_enc": torch.full((D, M), 1e300, dtype=torch.float64), "b_enc": torch.zeros(M)}, "NaN or infinity"),
        ({"W_enc": torch.zeros(D), "b_enc": torch.zeros(M)}, r"W_enc must be \[d, f\]"),
        ({"W_enc": torch.zeros(D, M, 2), "b_enc": torch.zeros(M)}, r"W_enc must be \[d, f\]"),
        ({"W_enc": torch.zeros(()), "b_enc": torch.zeros(())}, r"W_enc must be \[d, f\]"),
        ({"W_enc": torch.zeros(D, 0), "b_enc": torch.zeros(0)}, r"W_enc must be \[d, f\]"),
        ({"W_enc": torch.zeros(D, M), "b_enc": torch.zeros(M, 1)}, r"b_enc must be \[12\]"),
        ({"W_enc": torch.zeros(D, M), "b_enc": torch.zeros(M), "b_dec": torch.zeros(M)}, r"b_dec must be \[8\]"),
        (
            {"W_enc": torch.zeros(D, M), "b_enc": torch.zeros(M), "threshold": torch.zeros(3)},
            r"threshold must be \[12\]",
        ),
        ({"W_enc": torch.zeros(D, M, dtype=torch.float8_e4m3fn), "b_enc": torch.zeros(M)}, "F8_E4M3; expected"),
        ({"W_enc": torch.zeros(D, M, dtype=torch.int8), "b_enc": torch.zeros(M)}, "I8; expected"),
        ({"encoder.weight": torch.zeros(M), "encoder.bias": torch.zeros(M)}, "do not fit together"),
    ],
)
def test_tensors_that_cannot_be_an_encoder_are_refused(
    tensors: dict[str, torch.Tensor], says: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ProbeError, match=says):
        load_encoder(tmp_path / "x.safetensors")


LAYOUTS = {
    "cfg.json": "sae_weights.safetensors",
    "config.json": "ae.safetensors",
    "hyperparams.json": "final.safetensors",
}
BOMBS = [
    b"[" * 300000,
    b'{"a":' * 300000,
    b'{"sae":' * 100000 + b"1" + b"}" * 100000,
    b"null",
    b'"text"',
    b"NaN",
    b"",
    b"\xff\xfe",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("config", LAYOUTS)
def test_a_config_that_is_a_bomb_is_an_error(config: str, bomb: bytes, tmp_path: Path) -> None:
    (tmp_path / config).write_bytes(bomb)
    save_file({"W_enc": torch.zeros(D, M)}, tmp_path / LAYOUTS[config])
    with pytest.raises(ProbeError, match=re.escape(config)):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("x.json", b"[" * 300000),
        ("x.json", b'{"vector": ' + b"[" * 300000),
        ("enc_1_x.json", b'{"vector": [1%s]}' % (b"0" * 400)),
        ("enc_1_x.json", b'{"vector": [1e39]}'),
        ("enc_1_x.json", b'{"vector": ["1"]}'),
        ("enc_1_x.json", b'{"vector": [[1, 2]]}'),
        ("enc_1_x.json", b'{"vector": []}'),
        ("enc_1_x.json", b'{"vector": [1], "range": [0, 1%s]}' % (b"0" * 400)),
        ("enc_1_x.json", b'{"vector": [1], "site": {"a": 1}}'),
        ("enc_1_x.json", b'{"vector": [1], "layer": 99999999999999999999}'),
        ("enc_1_x.json", b'{"vector": [1], "hookName": "blocks.3.attn.hook_z"}'),
    ],
)
def test_a_json_probe_that_is_none_is_an_error(name: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ProbeError, match=name):
        load_probe(tmp_path / name)


def npy(shape: str, data: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "shape", ["(1000000000, 1000000)", f"({1 << 62}, {1 << 62})", "(2000000000,)", "(5,)", "(-4,)", "('a',)"]
)
def test_an_npz_whose_array_declares_more_than_it_has_is_refused_before_it_is_allocated(
    shape: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", npy(shape, FOUR))
    tracemalloc.start()
    with pytest.raises(ProbeError, match=r"params\.npz"):
        load_encoder(tmp_path / "params.npz")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["ae.pt", "layer0.sae.pt", "sae.pth", "pytorch_model.bin", "x.pkl"])
def test_a_pickle_is_refused_as_a_file_and_in_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ProbeError, match=re.escape(f"{name} is a pickle")):
            load_encoder(path)
    with pytest.raises(ProbeError, match=re.escape(f"{name} is a pickle")):
        load_probe(tmp_path / name)


def test_the_command_in_the_message_converts_a_pickle(tmp_path: Path) -> None:
    """dictionary_learning writes ae.pt; after the command that the refusal shows, the folder is read."""
    state = {
        "encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M), "decoder.weight": torch.randn(D, M),
        "b_dec": torch.randn(D), "threshold": torch.tensor(0.5), "k": torch.tensor(4),
    }  # fmt: skip
    torch.save(state, tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": "BatchTopKSAE", "k": 4, "submodule_name": "resid_post_layer_8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProbeError) as caught:
        load_encoder(tmp_path)
    command = shlex.split(str(caught.value).splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    rows = torch.randn(5, D)
    z = torch.relu((rows - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    np.testing.assert_allclose(
        load_encoder(tmp_path).encode(rows.numpy()), (z * (z > 0.5)).numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_gguf_and_a_folder_of_neither_are_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ProbeError, match="actscope probe import"):
        load_encoder(tmp_path / "x.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match="no autoencoder in this folder"):
        load_encoder(tmp_path / "empty")
    assert (
        not is_encoder(tmp_path / "empty") and not is_encoder(tmp_path / "absent") and is_encoder(tmp_path / "x.gguf")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_probe_of_another_precision_is_converted_and_says_so(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its test vectors are those of the weight before it was rounded: what rounding explains is no error."""
    generator = torch.Generator().manual_seed(4)
    weight, rows = torch.randn(256, generator=generator) * 30, torch.randn(6, 256, generator=generator) * 20
    info = ProbeInfo(id="mood", site="layers.1.resid_post", activation="identity")
    metadata = {"actscope_probe": msgspec.json.encode(info).decode()}
    tensors = {"weight": weight.to(dtype), "test_inputs": rows, "test_scores": rows @ weight}
    path = tmp_path / "mood.safetensors"
    save_file(tensors, path, metadata)
    with caplog.at_level(logging.WARNING, logger="actscope.probes"):
        probe = load_probe(path)
    assert isinstance(probe, Probe)
    assert probe.stored == {torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}[dtype]
    assert f"stored as {probe.stored}" in caplog.text
    np.testing.assert_array_equal(probe.weight, weight.to(dtype).float().numpy())
    save_file(tensors | {"test_scores": rows @ weight * 1.1}, path, metadata)
    with pytest.raises(ProbeError, match="its own test vectors"):
        load_probe(path)


def test_weights_in_the_form_of_others_need_the_activation_in_the_metadata(tmp_path: Path) -> None:
    """Qwen Scope's W_enc is [m, d] and topk, Goodfire's a Linear with relu: nothing in the tensors says so."""
    rows, w, b, path = torch.randn(5, D), torch.randn(M, D), torch.randn(M), tmp_path / "x.safetensors"
    z = torch.relu(rows @ w.T + b)
    top = z.topk(3, dim=1)
    for tensors in (
        {"W_enc": w, "b_enc": b, "b_dec": torch.ones(D)},
        {"encoder_linear.weight": w, "encoder_linear.bias": b},
        {"encoder.weight": w, "encoder.bias": b, "decoder.bias": torch.ones(D)},
    ):
        save_file(tensors, path, {"site": "layers.1.resid_post"})
        with pytest.raises(ProbeError, match="does not say its activation"):
            load_encoder(path)
        save_file(tensors, path, {"activation": "topk", "k": "3", "apply_b_dec_to_input": "false"})
        expected = torch.zeros_like(z).scatter_(1, top.indices, top.values)
        np.testing.assert_allclose(load_encoder(path).encode(rows.numpy()), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_directory_of_probes_names_the_files_that_have_to_be_imported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "happy.gguf").write_bytes(b"GGUF")
    (tmp_path / "mood.joblib").write_bytes(b"")
    assert load_probes(tmp_path) == []
    assert "probe import happy.gguf" in caplog.text and "mood.joblib is not loaded" in caplog.text
