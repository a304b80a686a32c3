"""A batch of running requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actscope.engines.hf.lanes.lanes import Lanes
from actscope.engines.hf.request import Request, TokenLogprobs
from actscope.engines.hf.sampling import Sampler
from actscope.engines.hf.text import Detokenizer
from actscope.taps.attribution import PaddedSequence


@dataclass(slots=True)
class Running:
    """A running request. `next_id` is the sampled token that the next pass feeds back."""

    request: Request
    sampler: Sampler
    text: Detokenizer
    next_id: int = -1
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def n_prompt(self) -> int:
        """Return the number of prompt tokens."""
        return len(self.request.prompt_ids)

    def take_prompt_logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Return the log-probabilities of the prompt's tokens, once: with the first output. Empty if they are not wanted."""
        if self.request.sampling.prompt_logprobs is None or len(self.sampler.generated) != 1:
            return ()
        return (TokenLogprobs(self.request.prompt_ids[0], None), *self.prompt_logprobs)


@dataclass(slots=True)
class SequenceBatch(Lanes):
    """Lanes with the requests that run in them."""

    sequences: list[Running] = field(default_factory=list)

    def lanes(self) -> list[PaddedSequence]:
        """Return the request id, padding and prompt length of every sequence, in the order of the batch."""
        return [
            PaddedSequence(s.request.id, pad, s.n_prompt) for s, pad in zip(self.sequences, self.padding, strict=True)
        ]

    def keep(self, indices: Sequence[int]) -> int:
        """Keep only these sequences, in this order, and drop cached columns that are padding for all. Returns their number."""
        self.sequences = [self.sequences[i] for i in indices]
        return self.select(indices)

    def join(self, other: SequenceBatch) -> None:
        """Take over the sequences and the cache of `other`, which must not be used afterwards."""
        self.extend(other)
        self.sequences = self.sequences + other.sequences


def padded_prompts(sequences: Sequence[Running], pad_id: int) -> tuple[np.ndarray, list[int]]:
    """Return the prompts, int64 [batch, longest], padded on the left, and the padding of each."""
    width = max(s.n_prompt for s in sequences)
    ids = np.full((len(sequences), width), pad_id, np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[width - sequence.n_prompt :] = sequence.request.prompt_ids
    return ids, [width - s.n_prompt for s in sequences]
