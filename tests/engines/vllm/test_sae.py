"""An SAE in the graph: the strongest features of every token are in the ring, behind the scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engines.vllm.conftest import ALL
from safetensors.numpy import save_file
from support.vllm import mixed, reference
from support.vllm.bed import Configuration, Offline
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, Ring, Seen, card

from actscope.frames import RowFlag
from actscope.probes.sae import load_encoder

LAYER, FEATURES, PLACES = 1, 512, 8


def write_sae(directory: Path, d: int) -> Path:
    """A TopK SAE with random weights, as SAELens lays it out."""
    directory.mkdir()
    weight = np.random.default_rng(3).normal(size=(d, FEATURES)).astype(np.float32)
    tensors = {"W_enc": weight, "W_dec": weight.T.copy(), "b_enc": np.zeros(FEATURES, np.float32)}
    save_file({**tensors, "b_dec": np.zeros(d, np.float32)}, directory / "sae_weights.safetensors")
    hook = f"blocks.{LAYER}.hook_resid_post"
    config = {
        "architecture": "topk",
        "k": 32,
        "d_in": d,
        "d_sae": FEATURES,
        "hook_name": hook,
        "apply_b_dec_to_input": True,
    }
    (directory / "cfg.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module", params=["compiled", *(["eager"] if ALL else [])])
def seen(request: pytest.FixtureRequest, model: Callable[[str], Path], engines: Engines) -> Iterator[dict[str, object]]:
    """Two requests with one prompt, the second from the prefix cache."""
    directory = short_directory()
    path = model("llama")
    d = json.loads((path / "config.json").read_text())["hidden_size"]
    sae = write_sae(directory / "sae", d)
    environment = {"ACTSCOPE_SAE": str(sae), "ACTSCOPE_SAE_TOP_K": str(PLACES)}
    engine = engines.start(Offline, Configuration(path, compile=request.param, environment=environment))
    found = card(engine)
    ring = Ring(found)
    texts = []
    for name in ("first", "again"):
        engine.add(name, mixed.prompt(1, 80))
        texts += [(name, generated) for generated in engine.drain().values()]
    rows = {request.split("-")[0]: one for request, one in ring.read().items()}
    table = Control(found).get("/v1/actscope/probes")
    ring.close()
    engines.end()
    yield {"rows": rows, "table": table, "sae": sae, "model": path}


def test_the_strongest_features_of_every_token_are_right(seen: dict[str, object]) -> None:
    """Numbers and activations equal the SAE's definition on transformers' rows, for computed and for cached prompts."""
    features = seen["table"]["features"]  # type: ignore[index]
    assert (features["site"], features["k"], features["n_features"]) == (f"layers.{LAYER}.resid_post", PLACES, FEATURES)
    encoder = load_encoder(seen["sae"])  # type: ignore[arg-type]
    for name in ("first", "again"):
        one: Seen = seen["rows"][name]  # type: ignore[index]
        assert one.having(RowFlag.CACHED).any() == (name == "again")
        rows = reference.resid_post(seen["model"], one.rows["token_id"].tolist())[LAYER]  # type: ignore[arg-type]
        z = encoder.encode(rows)
        order = np.argsort(-z, axis=1)[:, :PLACES]
        cells = one.scores[:, features["first"] : features["first"] + 2 * PLACES]
        numbers, values = cells[:, 0::2].astype(int), cells[:, 1::2]
        strongest = np.take_along_axis(z, order, axis=1)
        assert np.allclose(values, strongest, atol=1e-4 * np.abs(strongest).max())
        agree = numbers == order
        assert agree.mean() > 0.99  # two that are equal within rounding may change places
