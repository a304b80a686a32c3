"""Texts of the tokens of a replay: from the model's tokenizer, or from the texts in the recording."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actscope.engines.local.names import cached_directory
from actscope.engines.replay.facts import RecordedModel
from actscope.recording.reading.recording import Recording

#: Number of recorded texts that are compared to accept a tokenizer as the model's.
_COMPARED = 256
_MAX_SPECIAL = 4096  # as many as an engine's card holds


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A directory with a `tokenizer.json` ("" if there is none), and the ids of special tokens."""

    directory: str = ""
    special_ids: tuple[int, ...] = ()


def texts_of(recording: Recording, model: RecordedModel, scratch: Path) -> TokenizerFiles:
    """Return the model's tokenizer if it is on this machine and agrees with the recorded texts.

    Otherwise write a `tokenizer.json` that contains the recorded texts to `scratch`, if there are any.
    """
    known = {t.token_id: t.text for t in recording.recorded_tokens() if t.text} | recording.texts
    said = tuple(int(i) for i in recording.info["model"].get("special_ids") or ())[:_MAX_SPECIAL]
    for directory in _candidates(model):
        if (directory / "tokenizer.json").is_file() and _agrees(directory / "tokenizer.json", known):
            return TokenizerFiles(str(directory), said or _special_ids(directory / "tokenizer.json"))
    if not known:
        return TokenizerFiles("", said)
    (scratch / "tokenizer.json").write_text(json.dumps(_description(known), ensure_ascii=False), encoding="utf-8")
    return TokenizerFiles(str(scratch), said)


def _candidates(model: RecordedModel) -> Iterator[Path]:
    """Yield directories on this machine that may have the model's tokenizer, without downloading anything."""
    if (local := cached_directory(model.name)) is not None:
        yield local
    if model.path:
        yield Path(model.path)
    with suppress(ImportError, ValueError):  # ValueError: the name is not one of a hub
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model.name, "tokenizer.json", revision=model.revision or None)
        if isinstance(found, str):
            yield Path(found).parent


def _agrees(path: Path, known: dict[int, str]) -> bool:
    """Return whether a tokenizer decodes the recorded ids to the recorded texts.

    Whitespace at the ends is not compared: some tokenizers omit it when they decode a single token.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exception
        return False
    compared = [(i, text) for i, text in known.items() if text.strip() and "\ufffd" not in text][:_COMPARED]
    return all(tokenizer.decode([i], skip_special_tokens=False).strip() == text.strip() for i, text in compared)


def _special_ids(path: Path) -> tuple[int, ...]:
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or ()
    return tuple(int(token["id"]) for token in added if token.get("special"))[:_MAX_SPECIAL]


def _description(known: dict[int, str]) -> dict[str, object]:
    """Return a `tokenizer.json` that only decodes, as several ids may have the same text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": token, "content": text, **flags} for token, text in sorted(known.items())]
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return {"version": "1.0", **parts, "added_tokens": added, "model": model}
