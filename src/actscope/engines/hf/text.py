"""Streaming detokenizer: yields whole characters only, and no text from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Incremental decoder of one answer.

    Args:
        tokenizer: The model's tokenizer.
        prompt_ids: Tokens before the answer.
        stop: Strings that end it.
        skip_special: Whether special tokens have no text.
        include_stop: Whether the text of the answer includes the stop string.

    Attributes:
        stop_string: The stop string that was found, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: Sequence[str],
        *,
        skip_special: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = DecodeStream(ids=list(prompt_ids[-8:]), skip_special_tokens=skip_special)
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """Return whether a stop string was found."""
        return self.stop_string is not None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Add a token and return the text that is final with it. Sets `stop_string` when one is complete.

        `may_stop`: False releases all text, without a search for stop strings.
        """
        self._held += self._decoded(token_id)
        if not may_stop:
            return self._take(len(self._held))
        found = min(((i, s) for s in self._stop if (i := self._held.find(s)) >= 0), default=None)
        if found is not None:
            at, self.stop_string = found
            return self._take(at + len(self.stop_string) if self._include_stop else at)
        return self._take(len(self._held) - self._undecided())

    def _decoded(self, token_id: int) -> str:
        try:
            return self._decoder.step(self._tokenizer, token_id) or ""
        except Exception:  # "Invalid prefix encountered": a byte-fallback character that was never completed
            self._decoder = DecodeStream(ids=[], skip_special_tokens=self._skip_special)
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
