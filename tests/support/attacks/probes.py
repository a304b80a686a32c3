"""Readers of probes, autoencoders, GGUF files, scikit-learn models and labelled texts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import msgspec
import numpy as np
import skops.io
from safetensors.numpy import save
from sklearn.linear_model import LogisticRegression
from support.attacks.fuzzing import Target
from support.attacks.mutations import repacked

from actscope.engines.local.gguf_file import read_gguf
from actscope.probes import Bank, Probe, ProbedModel, ProbeInfo, import_probes, load_probe, probe_from_json, save_probe
from actscope.probes.labels import read_labelled
from actscope.probes.sae import load_encoder

D, M = 6, 8
SITE = "layers.1.resid_post"
REPENG = Path(__file__).parents[2] / "data" / "repeng-0.4.gguf"


def _through(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a reader of bytes that puts them into a file."""

    def through(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return through


def probe() -> Probe:
    """A probe with test vectors."""
    rows = np.random.default_rng(0).standard_normal((3, D)).astype(np.float32)
    bare = Probe(ProbeInfo(id="joy", site=SITE, bias=0.5, range=(0.0, 2.0)), np.arange(D, dtype=np.float32))
    return Probe(bare.info, bare.weight, rows, bare.score(rows))


def _bank() -> Bank:
    return Bank(ProbedModel("m", "r", D, 4), 8)


def _load_bank(data: bytes) -> None:
    bank = _bank()
    bank.load(data)
    bank.table()


def _folder(path: Path, files: dict[str, bytes]) -> Callable[[str], Callable[[bytes], object]]:
    """Return, for the name of a file of an SAE's folder, the reader of the folder with that file replaced."""
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)

    def replacing(name: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> object:
            (path / name).write_bytes(data)
            try:
                return load_encoder(path, SITE)
            finally:
                (path / name).write_bytes(files[name])

        return read

    return replacing


def _sae_targets(folder: Path) -> Iterator[Target]:
    zeros, weight = np.zeros(M, np.float32), np.random.default_rng(0).standard_normal((D, M)).astype(np.float32)
    plain = save(
        {"W_enc": weight, "b_enc": zeros, "b_dec": np.zeros(D, np.float32)},
        {"activation": "topk", "k": "2", "site": SITE},
    )
    yield Target("SAE, plain", [plain], _through(folder / "sae.safetensors", load_encoder), 600)
    archive = io.BytesIO()
    np.savez_compressed(
        archive, W_enc=weight, b_enc=zeros, threshold=zeros, W_dec=weight.T, b_dec=np.zeros(D, np.float32)
    )
    read = _through(folder / "params.npz", lambda path: load_encoder(path, SITE))
    yield Target("SAE, npz", [archive.getvalue()], read, 600, repacked)
    tensors = save({"W_enc": weight, "b_enc": zeros, "W_dec": weight.T.copy(), "b_dec": np.zeros(D, np.float32)})
    config = {
        "architecture": "topk", "k": 2, "hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2", "d_in": D,
        "apply_b_dec_to_input": True, "normalize_activations": "none", "sae_lens_version": "6.1.0",
        "metadata": {"hook_name": None},
    }  # fmt: skip
    files = {"cfg.json": msgspec.json.encode(config), "sae_weights.safetensors": tensors}
    replacing = _folder(folder / "saelens", files)
    for name, data in files.items():
        yield Target(f"SAELens's {name}", [data], replacing(name), 400)
    linear = {
        "encoder.weight": weight.T.copy(),
        "encoder.bias": zeros,
        "decoder.weight": weight,
        "b_dec": np.zeros(D, np.float32),
    }
    trainer = {"trainer": {"dict_class": "AutoEncoderTopK", "submodule_name": "resid_post_layer_1", "k": 2}}
    files = {"config.json": msgspec.json.encode(trainer), "ae.safetensors": save(linear)}
    replacing = _folder(folder / "dictionary", files)
    for name, data in files.items():
        yield Target(f"dictionary_learning's {name}", [data], replacing(name), 300)


def _gguf_model(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def targets(folder: Path) -> Iterator[Target]:
    """Return the readers of this group."""
    save_probe(probe(), folder / "joy.safetensors")
    own = (folder / "joy.safetensors").read_bytes()
    yield Target("probe, safetensors", [own], _through(folder / "p.safetensors", load_probe), 800)
    vector = msgspec.json.encode(
        {"vector": [0.5, 1.0, -2.0], "layer": 3, "bias": 0.1, "label": "joy", "max_activation": 4.0}
    )
    yield Target("probe, JSON", [vector], _through(folder / "enc_3_joy.json", load_probe), 800)
    body = msgspec.json.encode({"vector": [0.5, 1.0], "site": SITE, "threshold": 0.5, "range": [0, 1]})
    yield Target("probe, uploaded", [body], lambda data: probe_from_json("joy", _json(data)), 500)
    bank = _bank()
    bank.put(probe())
    yield Target("dump of a bank", [bank.dump()], _load_bank, 500)
    yield from _sae_targets(folder)
    yield Target("control vector", [REPENG.read_bytes()],
                 _through(folder / "c.gguf", lambda path: import_probes(path, n_layers=99)), 300)  # fmt: skip
    yield Target("GGUF model", [_gguf_model(folder / "seed.gguf")], _through(folder / "m.gguf", read_gguf), 600)
    rows = np.random.default_rng(1).standard_normal((40, D))
    skops.io.dump(LogisticRegression().fit(rows, rows[:, 0] > 0), folder / "seed.skops")
    fitted = (folder / "seed.skops").read_bytes()
    yield Target(
        "scikit-learn model",
        [fitted],
        _through(folder / "m.skops", lambda path: import_probes(path, site=SITE)),
        120,
        repacked,
    )
    line = b'{"text": "The wolf ran.", "spans": {"danger": [[4, 8]], "joy": []}, "label": {"calm": false}}\n'
    yield Target(
        "labelled texts", [line, line * 2], _through(folder / "t.jsonl", lambda path: list(read_labelled(path))), 400
    )


def _json(data: bytes) -> object:
    """Decode a body as the control routes do."""
    from actscope.errors import RequestRefused
    from actscope.runtime.decoding import decode_json

    return decode_json(data, object, RequestRefused, "the body")
