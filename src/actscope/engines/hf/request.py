"""Requests to the engine, and their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actscope.errors import RequestRefused

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Temperature 0 is greedy. A `seed` makes a request's draws repeatable in any batch.

    Raises RequestRefused for a value out of range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    allowed_token_ids: tuple[int, ...] = ()
    """Ids that may be drawn; empty: all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids whose last token is not drawn after the others."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """Number of the most likely tokens whose log-probabilities are returned beside the drawn token's own; None: none at all."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken. Division by such a low temperature would overflow."""
        return self.temperature < 1e-5

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestRefused(f"{name} must lie between {low} and {high}, found {value}", param=name)
        if self.min_tokens > self.max_tokens:
            raise RequestRefused(
                f"min_tokens must be at most max_tokens {self.max_tokens}, found {self.min_tokens}", param="min_tokens"
            )
        if len(self.stop) > 16 or any(not s or len(s) > 1000 for s in self.stop):
            longest = max(map(len, self.stop))
            raise RequestRefused(
                f"stop takes up to 16 strings of 1 to 1000 characters, found {len(self.stop):,}, the longest of {longest:,}",
                param="stop",
            )


_BOUNDS = (
    ("max_tokens", 1, 1 << 24), ("temperature", 0.0, 100.0), ("top_p", 1e-9, 1.0), ("top_k", -1, 1 << 24),
    ("seed", -(1 << 63), (1 << 64) - 1),
    ("min_p", 0.0, 1.0), ("presence_penalty", -2.0, 2.0), ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 1e-3, 100.0), ("min_tokens", 0, 1 << 24), ("logprobs", 0, 20), ("prompt_logprobs", 0, 20),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, from the model's own logits: sampling parameters do not change them.

    Attributes:
        token_id: The token at the position.
        logprob: Its log-probability; None for the first token of a prompt, which nothing predicts.
        rank: Its rank among all tokens, from 1; 0 if there is no log-probability.
        top: Ids and log-probabilities of the most likely tokens, most likely first.
    """

    token_id: int
    logprob: float | None
    rank: int = 0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """Output of one step for one request. `text` may be empty while a character or a stop string is incomplete.

    Attributes:
        request: Id of the request.
        token_ids: Tokens of this step.
        text: Text that became final with them.
        finish_reason: Reason of the end, with the last output.
        stop_reason: The stop string, or the id of `stop_token_ids`, that ended the answer.
        error: Reason of a failure.
        logprobs: One entry for each token, if the request wants them.
        prompt_logprobs: One entry for each token of the prompt, with the first output, if the request wants them.
    """

    request: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue."""

    id: str
    prompt_ids: Sequence[int]
    sampling: Sampling
