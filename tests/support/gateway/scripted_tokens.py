"""The scripted engine's tokenizer: 256 bytes, some words, four special tokens; byte-level, like GPT-2's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

BOS, EOS, USER, ASSISTANT = range(4)
SPECIAL = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>")
SPECIAL_IDS = (BOS, EOS, USER, ASSISTANT)
WORDS = (" snow", " falls", " on", " the", " quiet", " hill", " and", " river", " sleeps", ".")


def _printable() -> list[str]:
    """GPT-2's character for each byte."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(moved)) for b in range(256)]


class ScriptedTokens:
    """Greedy longest match over the words, single bytes for the rest."""

    def __init__(self) -> None:
        letters = _printable()
        words = [w.encode() for w in WORDS if len(w) > 1]
        self.bytes_of: dict[int, bytes] = {i: b"" for i in SPECIAL_IDS}
        self.bytes_of |= {4 + b: bytes([b]) for b in range(256)}
        self.bytes_of |= {260 + i: w for i, w in enumerate(words)}
        self._words = {w: 260 + i for i, w in enumerate(words)}
        self.vocabulary = {name: i for i, name in enumerate(SPECIAL)}
        self.vocabulary |= {"".join(letters[b] for b in data): i for i, data in self.bytes_of.items() if data}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        data, at, ids = text.encode(), 0, []
        while at < len(data):
            word = next((w for w in self._words if data.startswith(w, at)), None)
            ids.append(self._words[word] if word else 4 + data[at])
            at += len(word) if word else 1
        return ids

    def cycle(self, text: str) -> Iterator[int]:
        """The ids of `text`, without end."""
        ids = self.encode(text)
        while True:
            yield from ids

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        added = [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, name in enumerate(SPECIAL)
        ]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        description = {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": level,
            "decoder": level,
            "model": {"type": "BPE", "vocab": self.vocabulary, "merges": []},
        }
        (directory / "tokenizer.json").write_text(json.dumps(description))
