"""Prompts to token ids, in a time that the context bounds, and a streaming detokenizer.

The detokenizer yields whole characters only, and no text from a stop string on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from actscope.engines.hf.loading import LoadedModel
from actscope.errors import RequestRefused

#: Characters a token that a text is first tried with. English has about 4, runs of blanks up to the longest token.
_FIRST_CHARACTERS = 16
#: The beginning of a text that has this multiple of the context in tokens cannot be part of a text that fits, however the
#: tokens at the cut would be.
_CERTAIN = 2
#: Allowance for tokenizers that shorten a text before they divide it.
_SHORTENED = 4


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


def token_ids(loaded: LoadedModel, text: str, **options: bool) -> list[int]:
    """Return the tokens of a prompt.

    A prompt that is longer than the context is found out from its beginning, so that the time is bounded by the context's size
    and not by the prompt's.

    Args:
        loaded: Tokenizer and context size.
        text: The rendered prompt.
        options: Further arguments of the tokenizer.

    Raises:
        RequestRefused: The prompt has far more tokens than the context.
    """
    context, tokenizer = loaded.max_context, loaded.tokenizer
    if len(text) > context * _longest_token(tokenizer) * _SHORTENED:
        raise _too_long(context, f"the prompt has {len(text):,} characters")
    n = context * _FIRST_CHARACTERS
    while n < len(text):
        found = len(tokenizer(text[:n], **options)["input_ids"])
        if found > _CERTAIN * context:
            raise _too_long(context, f"the first {n:,} of the prompt's {len(text):,} characters have {found:,}")
        n *= 4
    return list(tokenizer(text, **options)["input_ids"])


@lru_cache(maxsize=4)
def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)


def check_ids(loaded: LoadedModel, ids: list[int]) -> None:
    """Raise RequestRefused if there are more token ids than the context has room for."""
    if len(ids) > loaded.max_context:
        raise _too_long(loaded.max_context, f"the prompt has {len(ids):,}")


def _too_long(context: int, found: str) -> RequestRefused:
    return RequestRefused(
        f"This model's maximum context length is {context} tokens; {found}. Shorten the messages.",
        param="messages",
        code="context_length_exceeded",
    )
