"""Evaluate the built-in model on held-out text against a unigram and a trigram, and print some of its answers.

python -m actscope.engines.builtin.evaluate [--model DIR] [--texts 1500]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from actscope.engines.builtin import model_path
from actscope.engines.builtin.card import write_card
from actscope.engines.builtin.data import texts, tokens
from actscope.engines.builtin.ngrams import Trigram, Unigram

PROMPTS = (
    "hello", "who are you?", "Tell me about a fox in the snow", "tell me a scary story", "why is the girl sad?",
    "what is 2 plus 3?", "count to five", "write about a dragon at the sea", "what will the sailor do tomorrow?",
    "Tell me about the king in the castle.", "tell me a sad story about a robot", "Is it safe at the river?",
    "what is danger?", "write three sentences about a penguin", "tell me about a toaster in the kitchen",
    "What is the capital of France?", "explain quantum physics", "I am sad", "Tell me a joke", "asdf jkl",
)  # fmt: skip


def load(model: Path) -> tuple[Any, Any]:
    """Load the model in fp32, and its tokenizer."""
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return found.train(False), AutoTokenizer.from_pretrained(model)


@torch.inference_mode()
def token_losses(model: PreTrainedModel, documents: list[list[int]], batch: int = 16) -> list[np.ndarray]:
    """Return, for each document, the loss in nats of every token but the first, given all tokens before it."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    losses: list[np.ndarray] = [np.empty(0)] * len(documents)
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        for i, values in zip(chosen, _padded_losses(model, [documents[i] for i in chosen]), strict=True):
            losses[i] = values
    return losses


def _padded_losses(model: PreTrainedModel, documents: list[list[int]]) -> Iterator[np.ndarray]:
    longest = max(map(len, documents))
    ids = torch.tensor([document + [0] * (longest - len(document)) for document in documents])
    logits = model(ids[:, :-1]).logits.float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").numpy()
    return (row[: len(document) - 1] for row, document in zip(losses, documents, strict=True))


def perplexity(nats: np.ndarray) -> float:
    """Return exp of the mean of negative log-likelihoods, given in nats."""
    return float(np.exp(np.mean(nats)))


def ngram_losses(ngram: Unigram | Trigram, documents: list[list[int]]) -> np.ndarray:
    """Return the losses in nats of the tokens that `token_losses` scores."""
    begin = documents[0][0]
    ids = np.concatenate([[begin, begin], *documents])
    return np.asarray(-np.log(ngram.probabilities(ids)[ids[2:] != begin]))


def held_out_documents(tokenizer: PreTrainedTokenizerFast, n: int, seed: int, kind: str = "mixed") -> list[list[int]]:
    """Return the token ids of `n` held-out texts, without special tokens."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts(n, seed, "heldout", kind), add_special_tokens=False)
    return [text.ids for text in encoded]


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, n_texts: int, n_training: int
) -> dict[str, float]:
    """Measure perplexities per token on held-out text. The n-grams are trained on `n_training` texts of the training stream."""
    documents = held_out_documents(tokenizer, n_texts, seed=11)
    training = tokens(tokenizer, n_training, 1_000_000, "train")
    v = len(tokenizer)
    losses = token_losses(model, documents)
    long = token_losses(model, held_out_documents(tokenizer, max(4, n_texts // 100), seed=12, kind="long"), batch=1)
    return {
        "perplexity": perplexity(np.concatenate(losses)),
        "perplexity_from_position_600": perplexity(np.concatenate([values[600:] for values in long])),
        "trigram_perplexity": perplexity(ngram_losses(Trigram(training, v), documents)),
        "unigram_perplexity": perplexity(ngram_losses(Unigram(training, v), documents)),
        "held_out_tokens": sum(map(len, losses)),
        "ngram_training_tokens": len(training),
    }


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, *asked: str, limit: int = 200) -> tuple[str, bool]:
    """Return the greedy answer to a conversation (user and assistant in turn), and whether it ended with the EOS token."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(asked)]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=limit, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True), int(out[-1]) == tokenizer.eos_token_id


def write_metrics(to: Path, section: str, figures: dict[str, float]) -> None:
    """Replace one section of `metrics.json` and keep the others."""
    file = to / "metrics.json"
    metrics = json.loads(file.read_text()) if file.exists() else {}
    metrics[section] = figures
    file.write_text(json.dumps(metrics, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Print answers and figures on held-out text, and write the figures to the metrics and the card of the model."""
    parser = argparse.ArgumentParser(description="Measure the built-in model on held-out text.")
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--texts", type=int, default=1500, help="held-out texts to score (default 1500)")
    parser.add_argument("--ngram-texts", type=int, default=60_000, help="training texts of the n-grams (default 60000)")
    options = parser.parse_args(argv)
    model, tokenizer = load(options.model)
    for asked in PROMPTS:
        sys.stdout.write(f"> {asked}\n{answer(model, tokenizer, asked)[0]}\n\n")
    figures = measured(model, tokenizer, options.texts, options.ngram_texts)
    for name, value in figures.items():
        sys.stdout.write(f"{name:>30} {value:,.2f}\n" if isinstance(value, float) else f"{name:>30} {value:,}\n")
    write_metrics(options.model, "held_out", figures)
    write_card(options.model)


if __name__ == "__main__":
    main()
