"""Streaming detokenizer: yields whole characters only, and no text from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Incremental decoder of one answer. Special tokens have no text."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(ids=list(prompt_ids[-8:]), skip_special_tokens=True)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is final with it. Sets `stopped` when a stop string is complete."""
        self._held += self._decoded(token_id)
        found = min((i for i in (self._held.find(s) for s in self._stop) if i >= 0), default=None)
        if found is not None:
            self.stopped = True
            return self._take(found)
        return self._take(len(self._held) - self._undecided())

    def _decoded(self, token_id: int) -> str:
        try:
            return self._decoder.step(self._tokenizer, token_id) or ""
        except Exception:  # "Invalid prefix encountered": a byte-fallback character that was never completed
            self._decoder = DecodeStream(ids=[], skip_special_tokens=True)
            return self._decoder.step(self._tokenizer, token_id) or ""

    def finish(self) -> str:
        """Return the text that was held back because it could have begun a stop string."""
        return self._take(len(self._held))

    def _take(self, n: int) -> str:
        text, self._held = self._held[:n], "" if self.stopped else self._held[n:]
        return text

    def _undecided(self) -> int:
        """Return the length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        tails = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in tails if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
