"""Synthetic English text with known labels: short stories and conversations.

python -m actscope.engines.builtin.text --n 2000 --seed 7 --split train > labels.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from random import Random
from zlib import crc32

from actscope.engines.builtin.texts.chats import conversation
from actscope.engines.builtin.texts.marks import LABELS, Text, Writer
from actscope.engines.builtin.texts.scenes import Scene
from actscope.engines.builtin.texts.stories import MOODS, go_on, plans, tell
from actscope.engines.builtin.turns import BEGIN, END, ROLES

__all__ = ["LABELS", "Text", "generate", "messages_of"]

KINDS = ("mixed", "story", "chat", "long")
SPLITS = ("train", "heldout")
_HELD_OUT_SHARE = 12  # one text in twelve is held out


def generate(seed: int, kind: str = "mixed", split: str = "train") -> Iterator[Text]:
    """Yield texts endlessly; the same arguments give the same texts on every machine.

    No text of one split is ever in the other, whatever the seeds. The stories of "train" never combine the actor and the
    place of a held-out pair (`lexicon.held_out`).

    Args:
        seed: Seed of the texts.
        kind: "story", "chat" (one to four turns), "long" (chats of many turns), or "mixed" (all of these).
        split: "train" or "heldout".

    Raises:
        ValueError: The kind or the split is unknown. Raised on the first item.
    """
    if kind not in KINDS or split not in SPLITS:
        raise ValueError(f"kind must be one of {KINDS} and split one of {SPLITS}, got {kind!r} and {split!r}")
    rng = Random(f"{seed}/{kind}/{split}")
    while True:
        text = _draw(rng, kind, training=split == "train")
        if (crc32(text.text.encode()) % _HELD_OUT_SHARE == 0) == (split == "heldout"):
            yield text


def _draw(rng: Random, kind: str, training: bool) -> Text:
    if kind == "mixed":
        kind = rng.choices(("story", "chat", "long"), (15, 81, 4))[0]
    if kind == "story":
        return _story(rng, training)
    turns = rng.randint(5, 24) if kind == "long" else rng.choice((1, 1, 1, 2, 2, 3, 4))
    return _chat(rng, training, turns)


def _story(rng: Random, training: bool) -> Text:
    writer = Writer()
    scene = Scene.draw(rng, rng.choice(("past", "past", "present")), training=training)
    sentences = tell(scene, rng.choice(list(MOODS)))
    if rng.random() < 0.3:
        sentences += go_on(scene)
    if rng.random() < 0.15:
        sentences += plans(scene)
    writer.raw(BEGIN)
    writer.passage(sentences)
    writer.raw(END)
    return writer.text()


def _chat(rng: Random, training: bool, turns: int) -> Text:
    system, taken = conversation(rng, training, turns)
    writer = Writer()
    writer.raw(BEGIN)
    if system:
        writer.raw(ROLES["system"] + system + END)
    for turn in taken:
        _speak(writer, "user", [turn.ask])
        _speak(writer, "assistant", turn.answer)
    return writer.text()


def _speak(writer: Writer, role: str, sentences: list[str]) -> None:
    writer.open(role + "_turn")
    writer.raw(ROLES[role])
    writer.passage(sentences)
    writer.raw(END)
    writer.close(role + "_turn")


def messages_of(chat: str) -> list[dict[str, str]]:
    """Parse a rendered chat into its messages; empty for a story."""
    roles = {token: role for role, token in ROLES.items()}
    parts = (part for part in chat.removeprefix(BEGIN).split(END) if part)
    found = [(token, part) for part in parts for token in roles if part.startswith(token)]
    return [{"role": roles[token], "content": part.removeprefix(token)} for token, part in found]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write labelled texts as JSON lines to standard output.")
    parser.add_argument("--n", type=int, default=1000, help="number of texts (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--kind", choices=KINDS, default="mixed")
    options = parser.parse_args(argv)
    texts = generate(options.seed, options.kind, options.split)
    for _ in range(options.n):
        text = next(texts)
        sys.stdout.write(json.dumps({"text": text.text, "spans": text.spans}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
