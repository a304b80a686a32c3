"""The shipped model: it loads, fits, predicts better than a trigram, and answers on its subject."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from actscope.engines.builtin import model_path
from actscope.engines.builtin.evaluate import answer, load, measured

LIMIT_BYTES = 10_000_000
#: The model and its tokenizer.
Shipped = tuple[Any, Any]


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return load(model_path())


def test_every_file_is_below_ten_megabytes() -> None:
    assert max(file.stat().st_size for file in model_path().iterdir() if file.is_file()) < LIMIT_BYTES


def test_no_file_names_a_path_of_the_machine_it_was_made_on() -> None:
    texts = [file.read_text() for file in model_path().iterdir() if file.suffix in (".json", ".md", ".jinja")]
    assert not [text for text in texts if re.search(r"/(home|root|tmp|work)/", text)]


def test_card_states_the_figures_that_were_measured() -> None:
    card, metrics = (model_path() / "README.md").read_text(), json.loads((model_path() / "metrics.json").read_text())
    figures = metrics["held_out"]
    for name in ("perplexity", "trigram_perplexity", "unigram_perplexity"):
        assert f"{figures[name]:.2f}" in card


def test_model_beats_the_trigram_on_held_out_text(shipped: Shipped) -> None:
    model, tokenizer = shipped
    figures = measured(model, tokenizer, n_texts=120, n_training=6000)
    assert figures["perplexity"] < 0.8 * figures["trigram_perplexity"] < figures["unigram_perplexity"]


def test_recorded_figures_are_those_of_the_shipped_weights(shipped: Shipped) -> None:
    recorded = json.loads((model_path() / "metrics.json").read_text())["held_out"]["perplexity"]
    model, tokenizer = shipped
    figures = measured(model, tokenizer, n_texts=150, n_training=200)
    assert figures["perplexity"] == pytest.approx(recorded, rel=0.1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("Tell me about a fox in the snow", ("fox", "snow")),
        ("Tell me about the king in the castle.", ("king", "castle")),
        ("tell me a sad story about a robot", ("robot",)),
        ("hello", ()),
    ],
)
def test_greedy_answers_name_subject_and_place_and_end(shipped: Shipped, asked: str, words: tuple[str, ...]) -> None:
    text, ended = answer(*shipped, asked)
    assert ended
    assert len(text) > 20 or not words
    assert all(word in text.lower() for word in words)


def test_an_unknown_subject_is_copied(shipped: Shipped) -> None:
    text, ended = answer(*shipped, "Tell me about a toaster in the kitchen.")
    assert ended
    assert "toaster" in text


@torch.inference_mode()
def test_incremental_decoding_agrees_with_the_full_pass(shipped: Shipped) -> None:
    model, tokenizer = shipped
    ids = tokenizer("<|begin|><|user|>hello<|end|><|assistant|>Hello! I am glad", return_tensors="pt")["input_ids"]
    full = model(ids).logits
    first = model(ids[:, :4], use_cache=True)
    rest = model(ids[:, 4:], past_key_values=first.past_key_values).logits
    np.testing.assert_allclose(full[:, 4:].numpy(), rest.numpy(), atol=1e-4)
