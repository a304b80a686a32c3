"""The built-in model: small, trained by the project itself, usable on a fresh machine without a download.

model = AutoModelForCausalLM.from_pretrained(model_path())
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from actscope.engines.builtin.texts.marks import LABELS, Text

NAME = "actscope/builtin"

__all__ = ["LABELS", "NAME", "Text", "labelled", "model_path", "probes_path"]


def model_path() -> Path:
    """Return the directory of the model: config, weights, tokenizer, chat template, metrics."""
    return Path(__file__).parent / "model"


def probes_path() -> Path:
    """Return the directory of the model's probes."""
    return Path(__file__).parent / "probes"


def labelled(n: int, seed: int = 0, split: str = "train") -> Iterator[Text]:
    """Yield `n` labeled texts of every kind, to train a probe ("train") or to evaluate it ("heldout")."""
    from actscope.engines.builtin.text import generate

    return islice(generate(seed, "mixed", split), n)
