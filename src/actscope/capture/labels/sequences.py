"""State of the sequences of a batch: the computed columns of each, which determine the next positions.

column   0  1  2  3  4  5          cache column, shared by all lanes
lane 0   .  .  a  b  c  d          seen: F F T T T T     positions 0..3
lane 1   .  a  b  c  .  d          seen: F T T T F T     positions 0..3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import Ambiguity, AmbiguousLabels
from actscope.capture.labels.cache_state import StateSample
from actscope.capture.labels.forward_inputs import ForwardInputs

_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True, eq=False)
class Sequences:
    """One batch of sequences that share a cache; one request per lane. Used by one thread at a time.

    Arrays have one entry, or one row, per lane.
    """

    requests: list[str]
    kept: np.ndarray
    """bool: whether the request is in the sample."""
    n_prompt: np.ndarray
    """int64: number of prompt tokens, as far as known."""
    reach: np.ndarray
    """int64: positions below this one have been labeled. Later rows of them are flagged RECOMPUTED."""
    ended_at: np.ndarray
    """int64: position of the token that ended the request; int64 maximum if it has not ended."""
    seen: np.ndarray
    """bool [lanes, capacity]: True for columns that are tokens; valid for the first `columns` columns."""
    history: np.ndarray
    """int64 [lanes, capacity]: token ids by position; -1 if unknown."""
    final: np.ndarray
    """int64: final number of tokens if the last passes computed more (rejected drafts), else 0."""
    columns: int = 0
    passes: int = 0
    trouble: Ambiguity | None = None
    aborted: bool = False
    """Whether an exception ended the code that ran these sequences."""
    holders: int = 0
    """Reference count: caches and scopes that may continue these sequences. At 0 the requests have ended."""
    sample: StateSample | None = None
    """Sample of the recurrent state after the last pass, if only the state holds what ran; None if it is not known."""

    @classmethod
    def begin(cls, requests: Sequence[str], keep: Callable[[str], bool]) -> Sequences:
        """Return new sequences without computed columns."""
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
        """Return new sequences for a cache whose passes were not observed. Its columns count as tokens of unknown id."""
        begun = cls.begin(requests, keep)
        begun._reserve(inputs.past)
        begun.seen[:, : inputs.past] = True if inputs.past_mask is None else inputs.past_mask
        begun.columns = inputs.past
        return begun

    def again(self) -> Sequences:
        """Return a copy restarted at column 0. Invalidates `self`."""
        self.trouble = doubt.CACHE_TAKEN
        return replace(
            self,
            seen=self.seen.copy(),
            history=self.history.copy(),
            final=self.final.copy(),
            columns=0,
            trouble=None,
            holders=0,
            sample=None,
        )

    @property
    def length(self) -> np.ndarray:
        """int64 [lanes]: number of tokens of each sequence."""
        return self.tokens_before(self.columns)

    def tokens_before(self, column: int) -> np.ndarray:
        """Return the number of tokens in the columns before this one, int64 [lanes]."""
        counts: np.ndarray = np.count_nonzero(self.seen[:, :column], axis=1)
        return counts

    def begins(self, inputs: ForwardInputs) -> bool:
        """Return whether a pass that starts at column 0 repeats each of these sequences, possibly with more tokens appended."""
        if inputs.ids is None or inputs.lanes != len(self.requests) or self.trouble is not None:
            return False
        for lane, length in enumerate(self.length.tolist()):
            ids = inputs.ids[lane][inputs.real[lane]]
            known = self.history[lane, :length]
            if len(ids) < length or (known < 0).any() or not np.array_equal(ids[:length], known):
                return False
        return True

    def check(self, inputs: ForwardInputs) -> None:
        """Raise AmbiguousLabels unless this pass can continue these sequences."""
        if inputs.lanes != len(self.requests):
            self.trouble = self.trouble or doubt.BATCH_CHANGED
        elif inputs.past > self.columns:
            self.trouble = self.trouble or doubt.CACHE_GREW
        if self.trouble is not None:
            raise AmbiguousLabels(self.trouble)
        past = inputs.past_mask
        if past is not None and not np.array_equal(past, self.seen[:, : inputs.past]):
            raise AmbiguousLabels(doubt.MASK_CHANGED)

    def advance(self, inputs: ForwardInputs, positions: np.ndarray) -> None:
        """Update the state after a complete pass. Columns from `inputs.past` on are overwritten.

        Args:
            inputs: Inputs of the pass.
            positions: int64 [lanes, columns].
        """
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

    def settle(self, tokens: np.ndarray) -> None:
        """Set the final length from the result of `generate`, int64 [1, n], which omits rejected drafts of the last pass."""
        if len(tokens) != 1 or len(self.requests) != 1:
            return  # assisted generation runs one sequence
        known = self.history[0, : self.reach[0]]
        n, n_prompt = min(len(known), tokens.shape[1]), max(1, int(self.n_prompt[0]))
        if n < n_prompt or not np.array_equal(known[:n_prompt], tokens[0, :n_prompt]):
            return  # the prompt was given as embeddings, or is not in the result
        other = np.flatnonzero(known[:n] != tokens[0, :n])
        valid = int(other[0]) if len(other) else n
        self.final[0] = valid if valid < len(known) else 0

    def go_on_at(self, positions: np.ndarray, given: np.ndarray) -> None:
        """Clear the end of lanes with `given` text (bool [lanes, columns]) at or after it: their request continues."""
        self.ended_at[(given & (positions >= self.ended_at[:, None])).any(axis=1)] = _NEVER

    def end_at(self, positions: np.ndarray, ends: np.ndarray) -> None:
        """Record the first of `positions` [lanes, columns] where `ends` (bool) is True as the end of its request."""
        first = np.where(ends, positions, _NEVER).min(axis=1)
        np.minimum(self.ended_at, first, out=self.ended_at)

    def crop(self, columns: int) -> None:
        """Keep only the first columns: those behind them will be computed again."""
        self.columns = columns
        self.revive()

    def crop_state(self, removed: int) -> None:
        """Follow a crop of the cache by `removed` columns. A cache that tells its length is asked at its next pass instead."""
        if self.sample is not None:
            self.crop(max(0, self.columns - removed))
            self.sample = None

    def revive(self) -> None:
        """Clear ends beyond the cached columns, because those tokens were cropped from the cache."""
        self.ended_at[self.ended_at >= self.length] = _NEVER

    def select(self, lanes: Sequence[int]) -> None:
        """Keep these lanes of the cache, in this order. A repeated lane makes all lanes ambiguous."""
        self.sample = None  # the state is about to change with the lanes
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
