"""Sampling of a sequence's next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actscope.engines.hf.request import Sampling


@dataclass(slots=True)
class Sampler:
    """Sampler of one sequence. It has its own generator, so a seed gives the same draws in any batch."""

    params: Sampling
    prompt_ids: Sequence[int]
    generated: list[int] = field(default_factory=list)
    _generator: torch.Generator | None = None

    def draw(self, logits: Tensor, greedy: int) -> int:
        """Draw the next token from logits [vocabulary], whose argmax is `greedy`.

        Raises RuntimeError if a random draw meets logits that are not finite.
        """
        token = greedy if self._plain else self._draw(self._penalised(logits.float()))
        self.generated.append(token)
        return token

    @property
    def _plain(self) -> bool:
        p = self.params
        return p.greedy and not p.presence_penalty and not p.frequency_penalty and p.repetition_penalty == 1

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
