"""The feed with vLLM as its generator: stock vLLM in the generator's process, rows through the same buffer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.feed.feeding import feeding
from support.vllm import mixed
from support.vllm.bed import Configuration
from support.vllm.pool import Engines

from actscope.errors import FeedEnded
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.texts import open_texts

TEXTS, CONTEXT = 12, 64


def test_a_feed_from_vllm_gives_every_row_once_and_each_is_the_models_own(
    model: Callable[[str], Path],
    engines: Engines,
    bed_directory: Path,
    runtime_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One epoch: every wanted position exactly once, with its label, equal to transformers on the same weights and ids."""
    engines.end()
    path = model("llama")
    variables = Configuration(path, compile="traced").variables(runtime_directory, bed_directory / "cache")
    for name, value in (variables | {"ACTSCOPE_RUNTIME_DIR": str(runtime_directory)}).items():
        monkeypatch.setenv(name, value)
    texts = open_texts("builtin", n=TEXTS)
    pieces = Cutter(tokenizer_of(str(path)), context=CONTEXT).cut(range(TEXTS), texts.read(range(TEXTS)))
    right = {
        (piece.text, piece.number, int(position)): mixed.truth(path, tuple(piece.token_ids.tolist()))[0][
            "layers.2.resid_post"
        ][position]
        for piece in pieces
        for position in np.flatnonzero(piece.wanted)
    }
    options = {"engine": "vllm", "model": str(path), "model_dtype": "float32", "batch_tokens": 256, "texts": TEXTS}
    with feeding(**options, context=CONTEXT, buffer_rows=1000, epochs=1) as feed, feed.client(timeout=300) as client:
        client.wait_for_data(timeout=300)
        batches = []
        with pytest.raises(FeedEnded):
            while True:
                batches.append(client.take(100, labels=True))
        assert client.about()["engine"] == "vllm"
    labels = np.concatenate([batch.labels for batch in batches if batch.labels is not None])
    values = np.concatenate([batch.values.numpy() for batch in batches])
    places = [(int(one["text"]), int(one["piece"]), int(one["position"])) for one in labels]
    assert sorted(places) == sorted(right)
    expected = np.stack([right[place] for place in places])
    worst = np.abs(values - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert worst.max() <= mixed.ROW_TOLERANCE
