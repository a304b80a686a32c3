"""The sequences of a batch: what has run of each, and so where the next pass goes on.

column   0  1  2  3  4  5          of the cache, the same for all lanes
lane 0   .  .  a  b  c  d          seen: F F T T T T     positions 0..3
lane 1   .  a  b  c  .  d          seen: F T T T F T     positions 0..3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import Ambiguity, AmbiguousLabels
from actscope.capture.labels.forward_inputs import ForwardInputs

_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True, eq=False)
class Sequences:
    """One batch of sequences that share a cache; one request each. Only one thread at a time runs it.

    Arrays have one entry, or one row, for each lane.
    """

    requests: list[str]
    kept: np.ndarray
    """bool: whether the request is in the sample."""
    n_prompt: np.ndarray
    """int64: tokens of the prompt, as far as known."""
    reach: np.ndarray
    """int64: positions below have been labelled; to compute them again is to recompute."""
    ended_at: np.ndarray
    """int64: the position of the token that ended the request."""
    seen: np.ndarray
    """bool [lanes, capacity]: which columns are tokens; the first `columns` of them are known."""
    history: np.ndarray
    """int64 [lanes, capacity]: token ids by position; -1 where not known."""
    final: np.ndarray
    """int64: how many tokens the sequence has in the end, where the last passes computed more (drafts); 0 elsewhere."""
    columns: int = 0
    passes: int = 0
    trouble: Ambiguity | None = None
    aborted: bool = False
    """Whether an exception ended what ran it."""
    holders: int = 0
    """How many may go on with it: a cache, a scope. At 0 its requests have ended."""

    @classmethod
    def begin(cls, requests: Sequence[str], keep: Callable[[str], bool]) -> Sequences:
        """Sequences of which nothing has run."""
        lanes = len(requests)
        return cls(
            list(requests),
            np.array([keep(request) for request in requests], bool),
            np.zeros(lanes, np.int64),
            np.zeros(lanes, np.int64),
            np.full(lanes, _NEVER),
            np.zeros((lanes, 64), bool),
            np.full((lanes, 64), -1, np.int64),
            np.zeros(lanes, np.int64),
        )

    @classmethod
    def adopt(cls, requests: Sequence[str], keep: Callable[[str], bool], inputs: ForwardInputs) -> Sequences:
        """Sequences that come with a cache whose passes were not seen: their first positions are not computed here."""
        begun = cls.begin(requests, keep)
        begun._reserve(inputs.past)
        begun.seen[:, : inputs.past] = True if inputs.mask is None else inputs.mask[:, : inputs.past]
        begun.columns = inputs.past
        return begun

    def again(self) -> Sequences:
        """The same requests, from their first column on; this object is good for nothing after."""
        self.trouble = doubt.CACHE_TAKEN
        return replace(
            self,
            seen=self.seen.copy(),
            history=self.history.copy(),
            final=self.final.copy(),
            columns=0,
            trouble=None,
            holders=0,
        )

    @property
    def length(self) -> np.ndarray:
        """int64 [lanes]: how many tokens each sequence has."""
        return self.tokens_before(self.columns)

    def tokens_before(self, column: int) -> np.ndarray:
        """int64 [lanes]: how many of the columns before this one are tokens."""
        counts: np.ndarray = np.count_nonzero(self.seen[:, :column], axis=1)
        return counts

    def begins(self, inputs: ForwardInputs) -> bool:
        """Whether a pass from the first column on holds these very sequences, each whole, and perhaps longer."""
        if inputs.ids is None or inputs.lanes != len(self.requests) or self.trouble is not None:
            return False
        for lane, length in enumerate(self.length.tolist()):
            ids = inputs.ids[lane][inputs.real[lane]]
            known = self.history[lane, :length]
            if len(ids) < length or (known < 0).any() or not np.array_equal(ids[:length], known):
                return False
        return True

    def check(self, inputs: ForwardInputs) -> None:
        """Raise AmbiguousLabels unless this pass can go on with these sequences."""
        if inputs.lanes != len(self.requests):
            self.trouble = self.trouble or doubt.BATCH_CHANGED
        elif inputs.past > self.columns:
            self.trouble = self.trouble or doubt.CACHE_GREW
        if self.trouble is not None:
            raise AmbiguousLabels(self.trouble)
        if inputs.mask is not None and not np.array_equal(inputs.mask[:, : inputs.past], self.seen[:, : inputs.past]):
            raise AmbiguousLabels(doubt.MASK_CHANGED)

    def advance(self, inputs: ForwardInputs, positions: np.ndarray) -> None:
        """Take in a pass that has run to its end; columns behind `inputs.past` were cut off before, if there are any."""
        after = inputs.past + inputs.columns
        self._reserve(after)
        real = inputs.real
        self.seen[:, inputs.past : after] = real
        self.columns = after
        self.passes += 1
        lanes, columns = np.nonzero(real)
        if inputs.ids is not None:
            self.history[lanes, positions[lanes, columns]] = inputs.ids[lanes, columns]
        else:
            self.history[lanes, positions[lanes, columns]] = -1
        np.maximum(self.reach, self.length, out=self.reach)
        self.final[:] = 0

    def settle(self, told: np.ndarray) -> None:
        """Take in what `generate` gave back, token ids int64 [1, n]: drafts that the last pass computed may not be in it."""
        if len(told) != 1 or len(self.requests) != 1:
            return  # drafts are of one sequence
        known = self.history[0, : self.reach[0]]
        n, n_prompt = min(len(known), told.shape[1]), max(1, int(self.n_prompt[0]))
        if n < n_prompt or not np.array_equal(known[:n_prompt], told[0, :n_prompt]):
            return  # the prompt was given as embeddings, or is not part of what came back
        other = np.flatnonzero(known[:n] != told[0, :n])
        valid = int(other[0]) if len(other) else n
        self.final[0] = valid if valid < len(known) else 0

    def go_on_at(self, positions: np.ndarray, given: np.ndarray) -> None:
        """Forget the end of lanes that are `given` text, bool [lanes, columns], behind it: their request goes on."""
        self.ended_at[(given & (positions >= self.ended_at[:, None])).any(axis=1)] = _NEVER

    def end_at(self, positions: np.ndarray, ends: np.ndarray) -> None:
        """Note the first of `positions` [lanes, columns] that holds a token which ends its request."""
        first = np.where(ends, positions, _NEVER).min(axis=1)
        np.minimum(self.ended_at, first, out=self.ended_at)

    def revive(self) -> None:
        """Forget ends that lie behind what is in the cache: those tokens were cut off."""
        self.ended_at[self.ended_at >= self.length] = _NEVER

    def select(self, lanes: Sequence[int]) -> None:
        """Keep these lanes of the cache, in this order. A lane that comes twice leaves no lane certain."""
        if len(set(lanes)) != len(lanes) or not all(0 <= lane < len(self.requests) for lane in lanes):
            self.trouble = doubt.CACHE_SPLIT
            return
        chosen = np.asarray(lanes, np.int64)
        self.requests = [self.requests[lane] for lane in lanes]
        for name in ("kept", "n_prompt", "reach", "ended_at", "seen", "history", "final"):
            setattr(self, name, getattr(self, name)[chosen])

    def _reserve(self, columns: int) -> None:
        have = self.seen.shape[1]
        if columns > have:
            more = max(columns, 2 * have) - have
            self.seen = np.pad(self.seen, ((0, 0), (0, more)))
            self.history = np.pad(self.history, ((0, 0), (0, more)), constant_values=-1)
