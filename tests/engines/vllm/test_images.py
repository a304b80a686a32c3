"""vLLM with images: each position has its own row, those of an image under its placeholder's id."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from engines.vllm.test_gateway import TOLERANCE, dumped, gateway
from support.gateway.stage import Picture, Place, picture
from support.vllm.bed import Configuration, Served
from support.vllm.images import PLACEHOLDERS, data_url, make_llava, picture_of, resid_post
from support.vllm.pool import Engines
from transformers import AutoTokenizer

from actscope.probes import Probe, ProbeInfo, save_probe

#: Random directions at three depths.
PROBES = [
    Probe(
        ProbeInfo(id=f"at-{layer}", site=f"layers.{layer}.resid_post"),
        np.random.default_rng(layer).standard_normal(256).astype(np.float32) / 16,
    )
    for layer in (0, 2, 4)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def place(engines: Engines, model: Path) -> Iterator[Place]:
    for probe in PROBES:
        save_probe(probe, model.parent / "probes" / f"{probe.id}.safetensors")
    environment = {"ACTSCOPE_PROBES": str(model.parent / "probes")}
    served = engines.start(
        Served,
        Configuration(model, environment=environment, reads_images=True, arguments={"max_num_batched_tokens": 48}),
    )
    with gateway(served) as place:
        yield place
    engines.end()


def ask(place: Place, images: list[int], streams: bool) -> Picture:
    """A chat with these pictures among its text, 12 tokens long."""
    content: list[Any] = [{"type": "text", "text": "Tell me about "}]
    for seed in images:
        content += [
            {"type": "image_url", "image_url": {"url": data_url(picture_of(seed))}},
            {"type": "text", "text": " and "},
        ]
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model=place.model, messages=[{"role": "user", "content": content}], max_tokens=12, temperature=0, stream=streams,
            extra_body={"actscope": True, "ignore_eos": True},
        )  # fmt: skip
        return picture([dumped(one) for one in answer] if streams else [dumped(answer)])


@pytest.mark.parametrize("streams", [True, False])
def test_requests_with_images_have_the_scores_of_transformers(place: Place, model: Path, streams: bool) -> None:
    """At once, in chunks, one without a picture, one with two, and one picture that comes again from the cache."""
    asked = [[1], [2, 3], [], [1]]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda images: ask(place, images, streams), asked))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    for images, seen in zip(asked, found, strict=True):
        ids = [seen.ids[p] for p in sorted(seen.ids)]
        assert ids.count(placeholder) == PLACEHOLDERS * len(images)
        assert seen.final is not None
        assert (seen.final["present"], seen.final["computed"]) == (len(ids), len(ids) - 1)
        if not images:
            continue
        rows = resid_post(model, ids, [picture_of(seed) for seed in images])
        for probe in PROBES:
            expected = probe.score(rows[probe.info.layer])
            for position in range(len(ids) - 1):
                cell = seen.cells[position, probe.id]
                assert cell is not None, (seen.states[position, probe.id], position)
                np.testing.assert_allclose(cell, expected[position], atol=TOLERANCE)
