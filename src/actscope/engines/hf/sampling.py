"""Sampling of a sequence's next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actscope.engines.hf.request import Sampling, TokenLogprobs


@dataclass(slots=True)
class Sampler:
    """Sampler of one sequence. It has its own generator, so a seed gives the same draws in any batch.

    Attributes:
        params: Parameters of the request.
        prompt_ids: Its prompt.
        ends: Ids that end the answer. They are not drawn before `params.min_tokens` tokens.
        generated: Tokens drawn so far.
    """

    params: Sampling
    prompt_ids: Sequence[int]
    ends: frozenset[int] = frozenset()
    generated: list[int] = field(default_factory=list)
    _generator: torch.Generator | None = None
    _barred: Tensor | None = None

    def draw(self, logits: Tensor, greedy: int) -> int:
        """Draw the next token from logits [vocabulary], whose argmax is `greedy`. Does not change the logits.

        Raises RuntimeError if a random draw meets logits that are not finite, or if no token may be drawn.
        """
        token = greedy if self._plain else self._draw(self._processed(logits.to(torch.float32, copy=True)))
        self.generated.append(token)
        return token

    @property
    def _plain(self) -> bool:
        p = self.params
        unpenalised = not p.presence_penalty and not p.frequency_penalty and p.repetition_penalty == 1
        return p.greedy and unpenalised and not self._bars and not p.logit_bias

    @property
    def _bars(self) -> bool:
        """Whether some tokens may not be drawn now."""
        p = self.params
        return bool(p.allowed_token_ids or p.bad_words or len(self.generated) < p.min_tokens)

    def _draw(self, logits: Tensor) -> int:
        if self.params.greedy:
            return int(logits.argmax())
        probabilities = truncate(torch.softmax(logits / self.params.temperature, dim=-1).cpu(), self.params)
        return int(torch.multinomial(probabilities, 1, generator=self._random()))

    def _random(self) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator()
            seed = self.params.seed
            self._generator.manual_seed(seed) if seed is not None else self._generator.seed()
        return self._generator

    def _processed(self, logits: Tensor) -> Tensor:
        """Apply, in vLLM's order: barred tokens, the bias, the penalties."""
        if self._bars:
            self._bar(logits)
        if self.params.logit_bias:
            ids, values = zip(*self.params.logit_bias, strict=True)
            logits.index_add_(0, torch.tensor(ids, device=logits.device), torch.tensor(values, device=logits.device))
        return self._penalised(logits)

    def _bar(self, logits: Tensor) -> None:
        p = self.params
        if p.allowed_token_ids:
            if self._barred is None:
                self._barred = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
                self._barred[list(p.allowed_token_ids)] = False
            logits[self._barred] = -torch.inf
        barred = [words[-1] for words in p.bad_words if self._ends_with(words[:-1])]
        if len(self.generated) < p.min_tokens:
            barred += self.ends
        if barred:
            logits[barred] = -torch.inf
        if not torch.isfinite(logits.max()):
            raise RuntimeError("no token may be drawn: allowed_token_ids, bad_words and min_tokens exclude all of them")

    def _ends_with(self, words: Sequence[int]) -> bool:
        return not words or self.generated[-len(words) :] == list(words)

    def _penalised(self, logits: Tensor) -> Tensor:
        p = self.params
        if p.repetition_penalty != 1:
            seen = torch.tensor(sorted({*self.prompt_ids, *self.generated}), device=logits.device)
            old = logits[seen]
            logits[seen] = torch.where(old > 0, old / p.repetition_penalty, old * p.repetition_penalty)
        if (p.presence_penalty or p.frequency_penalty) and self.generated:
            ids, counts = torch.unique(torch.tensor(self.generated, device=logits.device), return_counts=True)
            logits[ids] -= p.presence_penalty + p.frequency_penalty * counts
        return logits


def logprobs_of(logits: Tensor, tokens: Sequence[int], n_top: int) -> tuple[TokenLogprobs, ...]:
    """Return the log-probabilities of tokens, and of the `n_top` most likely ones at each position.

    Args:
        logits: [n, vocabulary], unprocessed.
        tokens: The token at each position, n ids.
        n_top: Number of the most likely tokens to add.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = ((logprobs > own).sum(dim=1) + 1).tolist()
    values, ids = logprobs.topk(n_top, dim=-1)
    rows = zip(tokens, own[:, 0].tolist(), ranks, ids.tolist(), values.tolist(), strict=True)
    return tuple(
        TokenLogprobs(token, value, rank, tuple(zip(top, top_values, strict=True)))
        for token, value, rank, top, top_values in rows
    )


def truncate(probabilities: Tensor, params: Sampling) -> Tensor:
    """Zero all probabilities outside top-k, top-p (nucleus) and min-p. The result is not renormalised."""
    if params.top_k <= 0 and params.top_p >= 1 and params.min_p <= 0:
        return probabilities
    ordered, index = probabilities.sort(descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if params.top_k > 0:
        keep[params.top_k :] = False
    mass_before = ordered.cumsum(0) - ordered
    keep &= mass_before < params.top_p
    keep &= ordered >= params.min_p * ordered[0]
    return torch.zeros_like(probabilities).scatter_(0, index, ordered * keep)
