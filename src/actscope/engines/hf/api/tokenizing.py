"""Prompts to token ids, with a bound on the time that a prompt takes which cannot fit the model's context."""

from __future__ import annotations

from functools import lru_cache

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
#: Characters of a prompt that is to be truncated which are always read, about a second of a core. It is tokenized as a whole,
#: because the tokens at its end depend on all of it. Models of a long context read 16 characters for each token of theirs.
_TRUNCATED = 1 << 20


def token_ids(loaded: LoadedModel, text: str, *, shortened: bool = False, **options: bool) -> list[int]:
    """Return the tokens of a prompt.

    A prompt that is longer than the context is found out from its beginning, so that the time is bounded by the context's size
    and not by the prompt's.

    Args:
        loaded: Tokenizer and context size.
        text: The rendered prompt.
        shortened: The request truncates the prompt, so that it may have more tokens than the context.
        options: Further arguments of the tokenizer.

    Raises:
        RequestRefused: The prompt has far more tokens than the context, or more characters than are truncated.
    """
    context, tokenizer = loaded.max_context, loaded.tokenizer
    if len(text) > context * _longest_token(tokenizer) * _SHORTENED:
        raise _too_long(context, f"the prompt has {len(text):,} characters")
    most = max(_TRUNCATED, context * _FIRST_CHARACTERS)
    if shortened and len(text) > most:
        raise RequestRefused(
            f"truncate_prompt_tokens: expected a prompt of at most {most:,} characters, found {len(text):,}: send less of it",
            param="truncate_prompt_tokens",
        )
    n = context * _FIRST_CHARACTERS
    while n < len(text) and not shortened:
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
