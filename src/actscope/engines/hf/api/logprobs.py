"""Format of log-probabilities in OpenAI's answers, and of vLLM's `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import Tokenizer

from actscope.engines.hf.request import TokenLogprobs

#: Stands for minus infinity, which JSON does not have. OpenAI's value.
_LEAST = -9999.0


@dataclass(frozen=True, slots=True)
class LogprobFormat:
    """Formatter of log-probabilities.

    Attributes:
        tokenizer: Tokenizer of the model.
        as_ids: Whether tokens are shown as `token_id:17` (vLLM's `return_tokens_as_token_ids`) and not by their text.
    """

    tokenizer: Tokenizer
    as_ids: bool = False

    def token(self, token_id: int) -> str:
        """Return how a token is shown."""
        return f"token_id:{token_id}" if self.as_ids else self._text(token_id)

    def _text(self, token_id: int) -> str:
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False))

    def chat(self, steps: Sequence[TokenLogprobs]) -> dict[str, object]:
        """Return `logprobs` of a choice of a chat completion."""
        content = [
            self._entry(s.token_id, s.logprob) | {"top_logprobs": [self._entry(*one) for one in s.top]} for s in steps
        ]
        return {"content": content}

    def output_text(self, steps: Sequence[TokenLogprobs]) -> list[dict[str, object]]:
        """Return `logprobs` of a text of the Responses API."""
        content = self.chat(steps)["content"]
        assert isinstance(content, list)
        return content

    def _entry(self, token_id: int, logprob: float | None) -> dict[str, object]:
        data = list(self._text(token_id).encode("utf-8", "replace"))
        return {"token": self.token(token_id), "logprob": _finite(logprob), "bytes": data}

    def text(self, steps: Sequence[TokenLogprobs], offset: int) -> dict[str, object]:
        """Return `logprobs` of a choice of a text completion, whose tokens begin at `offset` in the text.

        `top_logprobs` has the token itself and the most likely ones, as in OpenAI's API; null where there is no log-probability.
        """
        tokens = [self.token(s.token_id) for s in steps]
        return {
            "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else [],
            "token_logprobs": [None if s.logprob is None else _finite(s.logprob) for s in steps],
            "tokens": tokens,
            "top_logprobs": [None if s.logprob is None else self._top(s) for s in steps],
        }

    def _top(self, step: TokenLogprobs) -> dict[str, float]:
        return {self.token(i): _finite(value) for i, value in ((step.token_id, step.logprob), *step.top)}

    def prompt(self, steps: Sequence[TokenLogprobs]) -> list[dict[str, object] | None]:
        """Return vLLM's `prompt_logprobs`: for each token of the prompt its own and the most likely ones, by id."""
        return [None if s.logprob is None else self._ranked(s) for s in steps]

    def _ranked(self, step: TokenLogprobs) -> dict[str, object]:
        ranked = [(step.token_id, step.logprob, step.rank), *((i, v, n + 1) for n, (i, v) in enumerate(step.top))]
        return {
            str(i): {"logprob": _finite(value), "rank": rank, "decoded_token": self._text(i)}
            for i, value, rank in ranked
        }


def _finite(logprob: float | None) -> float:
    return _LEAST if logprob is None else max(logprob, _LEAST)
