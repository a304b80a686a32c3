"""The model that comes with actscope: small, made by the project itself, ready on a fresh machine without a download.

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
    """The directory of the model: config, weights, tokenizer, chat template, metrics."""
    return Path(__file__).parent / "model"


def probes_path() -> Path:
    """The directory of the probes that come with the model."""
    return Path(__file__).parent / "probes"


def labelled(n: int, seed: int = 0, split: str = "train") -> Iterator[Text]:
    """`n` labelled texts of every kind, for training a probe ("train") or judging it ("heldout")."""
    from actscope.engines.builtin.text import generate

    return islice(generate(seed, "mixed", split), n)
