"""Exact text and bytes of single tokens.

`tokenizers` decodes sequences, not tokens: a token that ends inside a character decodes to U+FFFD, and its bytes are lost. Here
every token has its exact bytes, so that the bytes of a sequence join to its text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from actscope.errors import UpstreamError

#: Text of a token whose bytes are not valid UTF-8 by themselves.
REPLACEMENT = "\ufffd"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(Protocol):
    """Function from a vocabulary entry to the bytes that it encodes."""

    def __call__(self, entry: str, token_id: int) -> bytes:
        """Return the bytes that a vocabulary entry encodes."""


class TokenTexts:
    """Text and bytes of each token of one tokenizer. Each token is looked up once, then cached."""

    def __init__(self, tokenizer: Tokenizer | None, to_bytes: TokenBytes, added: dict[int, str]) -> None:
        self._tokenizer = tokenizer
        self._to_bytes = to_bytes
        self._added = added
        self._known: dict[int, tuple[str, bytes | None]] = {-1: ("", None)}

    @classmethod
    def load(cls, directory: Path) -> TokenTexts:
        """Load `tokenizer.json` of a directory. Raises UpstreamError if it is missing or unreadable."""
        path = directory / "tokenizer.json"
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise UpstreamError(f"{path}: expected a readable tokenizer.json, found {error}") from error
        added = {int(t["id"]): str(t["content"]) for t in description.get("added_tokens") or ()}
        return cls(tokenizer, _byte_rule(description, tokenizer), added)

    @classmethod
    def unknown(cls) -> TokenTexts:
        """Return the texts of an engine without a tokenizer.json: every token's text is U+FFFD."""
        return cls(None, lambda entry, token_id: b"\xff", {})

    def own(self, token_id: int) -> tuple[str, bytes | None]:
        """Return the token's text, and its bytes if they are not valid UTF-8 by themselves, else None."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._look_up(token_id)
        return known

    def raw(self, token_id: int) -> bytes:
        """Return the token's bytes."""
        text, data = self.own(token_id)
        return text.encode() if data is None else data

    def _look_up(self, token_id: int) -> tuple[str, bytes | None]:
        data = self._find(token_id)
        if data is None:
            return REPLACEMENT, None
        try:
            return data.decode(), None
        except UnicodeDecodeError:
            return REPLACEMENT, data

    def _find(self, token_id: int) -> bytes | None:
        if token_id in self._added:
            return self._added[token_id].encode()
        entry = self._tokenizer.id_to_token(token_id) if self._tokenizer and token_id >= 0 else None
        return None if entry is None else self._to_bytes(entry, token_id)


def _byte_rule(description: dict[str, Any], tokenizer: Tokenizer) -> TokenBytes:
    """Return the rule of this kind of tokenizer, found by its decoder, or else by its pre-tokenizer."""
    kinds = _kinds(description.get("decoder")) or _kinds(description.get("pre_tokenizer"))
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _metaspace
    return lambda entry, token_id: tokenizer.decode([token_id], skip_special_tokens=False).encode()


def _kinds(part: dict[str, Any] | None) -> set[str]:
    if not part:
        return set()
    inner = [*(part.get("decoders") or ()), *(part.get("pretokenizers") or ())]
    return {str(part.get("type"))}.union(*(_kinds(p) for p in inner))


def _alphabet() -> dict[str, int]:
    """Return the byte of each of GPT-2's printable characters (inverse of `bytes_to_unicode` in openai/gpt-2, encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTES = _alphabet()


def _byte_level(entry: str, token_id: int) -> bytes:
    try:
        return bytes(_BYTES[c] for c in entry)
    except KeyError:  # not in the alphabet: the entry is plain text
        return entry.encode()


def _metaspace(entry: str, token_id: int) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(entry)
    return bytes([int(byte[1], 16)]) if byte else entry.replace("▁", " ").encode()
