"""Tokens of one choice with their scores, put together from the payloads of its chunks."""

from __future__ import annotations

import base64
import binascii
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from actscope.client.payload import CellBlock, Coverage, IdBlock, Payload, ProbeColumn, StrongestBlock, read_payload
from actscope.errors import ScoresError, ScoresNotFound


class ScoreState(enum.StrEnum):
    """Why a score has a value, or has none."""

    VALUE = "value"
    """Computed; 0.0 is a score like any other."""
    PENDING = "pending"
    """Not sent yet: a score becomes available one pass after its token."""
    NEVER_COMPUTED = "never computed"
    """It will not come, as for the last token of an answer, which is never fed back to the model."""
    MASKED = "masked"
    """The probe states that its score has no meaning on this token."""
    NOT_FINITE = "not finite"
    """Computed, but infinite or NaN."""


_STATES = {
    "c": ScoreState.VALUE,
    "n": ScoreState.NEVER_COMPUTED,
    "m": ScoreState.MASKED,
    "x": ScoreState.NOT_FINITE,
}


@dataclass(frozen=True, slots=True)
class Score:
    """Score of one probe on one token.

    Attributes:
        state: Why there is a value, or none.
        value: The score. Finite, and None unless `state` is VALUE.
    """

    state: ScoreState
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """An active feature of the engine's SAE on one token.

    Attributes:
        index: Number of the feature in the SAE.
        strength: Its activation, or None if it is not finite.
    """

    index: int
    strength: float | None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token with its scores, as they were when it was read from `Scores`.

    Attributes:
        position: Absolute position; 0 is the first token of the prompt.
        id: Token id. -1 if it is unknown.
        text: The token's own text. U+FFFD if its bytes alone are not valid UTF-8.
        raw: The token's bytes. Those of adjacent tokens joined are valid UTF-8.
        in_prompt: Whether the token belongs to the prompt.
        scores: Score of each probe, by its id.
        features: Strongest features first. None if they were not requested, or not computed here.
    """

    position: int
    id: int
    text: str
    raw: bytes
    in_prompt: bool
    scores: Mapping[str, Score]
    features: tuple[Feature, ...] | None = None

    @property
    def pending(self) -> bool:
        """Return whether a score of this token is still to come."""
        return any(score.state is ScoreState.PENDING for score in self.scores.values())


Columns = tuple[ProbeColumn, ...]


@dataclass(slots=True)
class _Row:
    """Cells of one position, in the order of `columns`."""

    columns: Columns
    cells: list[float | None]
    letters: str

    def scores(self) -> dict[str, Score]:
        triples = zip(self.columns, self.cells, self.letters, strict=True)
        return {column.id: Score(_STATES[letter], cell) for column, cell, letter in triples}


@dataclass(slots=True)
class _Tokens:
    """Consecutive tokens."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    raws: list[bytes] = field(default_factory=list)


class Scores(Sequence[ScoredToken]):
    """The tokens of one choice in order of position, each with its scores. It grows while its stream is read.

    Element 0 is the first token of the prompt, or of the answer if the prompt was not requested.

    Attributes:
        request: Id of this choice at the gateway, for look-ups and marks. "" until it is known.
        prompt_tokens: Number of tokens of the prompt. None until it is known.
        probes: The probes whose scores are sent, as of the last payload.
        finish_reason: OpenAI's, or None while the choice runs.
        coverage: Counts of positions. None until the choice has ended.
    """

    def __init__(self) -> None:
        self.request = ""
        self.prompt_tokens: int | None = None
        self.probes: Columns = ()
        self.finish_reason: str | None = None
        self.coverage: Coverage | None = None
        self._start: int | None = None
        self._tokens = _Tokens()
        self._rows: list[_Row] = []
        self._features: list[tuple[Feature, ...] | None] | None = None
        self._ended = False

    @property
    def complete(self) -> bool:
        """Return whether the choice has ended, so that no score is pending."""
        return self._ended

    @property
    def text(self) -> str:
        """Return the text of all tokens, those of the prompt and special tokens included."""
        return b"".join(self._tokens.raws).decode("utf-8", "replace")

    @property
    def n_resolved(self) -> int:
        """Return the number of leading tokens of which no score is pending."""
        return len(self) if self._ended else min(len(self), len(self._rows))

    def values(self, probe: str) -> np.ndarray:
        """Return the scores of one probe.

        Returns:
            float64 [len(self)]; NaN where there is no value (see `ScoredToken.scores` for the reason).

        Raises:
            ScoresNotFound: There is no such probe.
        """
        names = dict.fromkeys(c.id for columns in (self.probes, *(r.columns for r in self._rows)) for c in columns)
        if probe not in names:
            raise ScoresNotFound(f"no probe {probe!r} in this answer; it has {', '.join(names) or 'none'}")
        found = (token.scores.get(probe) for token in self)
        return np.array([math.nan if s is None or s.value is None else s.value for s in found], np.float64)

    def __len__(self) -> int:
        return len(self._tokens.ids)

    @overload
    def __getitem__(self, index: int) -> ScoredToken: ...
    @overload
    def __getitem__(self, index: slice) -> list[ScoredToken]: ...
    def __getitem__(self, index: int | slice) -> ScoredToken | list[ScoredToken]:
        if isinstance(index, slice):
            return [self._token(i) for i in range(*index.indices(len(self)))]
        return self._token(range(len(self))[index])

    def __repr__(self) -> str:
        state = "complete" if self._ended else f"{self.n_resolved} resolved"
        return f"<Scores of {self.request or 'no request yet'}: {len(self)} tokens, {state}>"

    def _token(self, i: int) -> ScoredToken:
        position = (self._start or 0) + i
        return ScoredToken(
            position=position,
            id=self._tokens.ids[i],
            text=self._tokens.texts[i],
            raw=self._tokens.raws[i],
            in_prompt=self.prompt_tokens is not None and position < self.prompt_tokens,
            scores=self._scores(i),
            features=self._features[i] if self._features is not None and i < len(self._features) else None,
        )

    def _scores(self, i: int) -> dict[str, Score]:
        if i < len(self._rows):
            return self._rows[i].scores()
        state = ScoreState.NEVER_COMPUTED if self._ended else ScoreState.PENDING
        return {column.id: Score(state) for column in self.probes}

    def add(self, found: object) -> None:
        """Take one payload of the choice.

        Args:
            found: The payload as decoded JSON.

        Raises:
            ScoresError: The payload is malformed, or does not follow the payloads before it.
        """
        payload = read_payload(found)
        if self._ended:
            raise self._malformed("payload", "nothing after the last payload", "another one")
        if payload.request is not None:
            self.request, self.prompt_tokens = payload.request, payload.prompt_tokens
        if payload.probes is not None:
            self.probes = tuple(payload.probes)
        if payload.tokens is not None:
            self._add_tokens(payload.tokens)
        if payload.scores is not None:
            self._add_rows(payload.scores)
        if payload.features is not None:
            self._add_features(payload.features)
        self._end(payload)

    def _add_tokens(self, block: IdBlock) -> None:
        self._check("tokens", block.start, len(self), len(block.ids), len(block.text))
        raws = [text.encode("utf-8", "replace") for text in block.text]
        for name, data in block.bytes.items():
            try:
                raws[range(len(raws))[int(name)]] = base64.b64decode(data, validate=True)
            except (ValueError, IndexError, binascii.Error) as error:
                raise self._malformed("tokens.bytes", "base64 by index in the block", f"{name[:20]!r}") from error
        self._tokens.ids += block.ids
        self._tokens.texts += block.text
        self._tokens.raws += raws

    def _add_rows(self, block: CellBlock) -> None:
        letters = ["c" * len(self.probes)] * len(block.rows) if block.states is None else block.states
        self._check("scores", block.start, len(self._rows), len(block.rows), len(letters))
        for cells, states in zip(block.rows, letters, strict=True):
            if not len(cells) == len(states) == len(self.probes) or not all(map(_fits, cells, states)):
                wanted = f"{len(self.probes)} cells: numbers where the state is c, else null"
                raise self._malformed("scores", wanted, f"{len(cells)} cells with states {states[:20]!r}")
        self._rows += [_Row(self.probes, cells, states) for cells, states in zip(block.rows, letters, strict=True)]

    def _add_features(self, block: StrongestBlock) -> None:
        known = self._features = [] if self._features is None else self._features
        self._check("features", block.start, len(known), len(block.ids), len(block.values))
        for ids, values in zip(block.ids, block.values, strict=True):
            if (ids is None) != (values is None) or len(ids or ()) != len(values or ()):
                raise self._malformed("features", "as many values as ids", "another number")
            known.append(None if ids is None else tuple(map(Feature, ids, values or ())))

    def _check(self, name: str, start: int, n_known: int, n: int, n_beside: int) -> None:
        """Check that a block begins where the last one of its kind ended, and that its lists are of one length."""
        if self._start is None:
            self._start = start
        if start != self._start + n_known:
            raise self._malformed(f"{name}.start", str(self._start + n_known), str(start))
        if n != n_beside:
            raise self._malformed(name, f"lists of {n} elements", f"one of {n_beside}")

    def _end(self, payload: Payload) -> None:
        final = payload.final
        if final is not None:
            self.coverage = Coverage(final.present, final.computed, final.cached)
            self.finish_reason = final.finish_reason
            self._ended = True

    def _malformed(self, where: str, expected: str, found: str) -> ScoresError:
        return ScoresError(
            f"actscope payload of request {self.request[:200]!r}: {where}: expected {expected}, found {found}"
        )


def _fits(cell: float | None, letter: str) -> bool:
    if letter not in _STATES:
        return False
    return cell is not None and math.isfinite(cell) if letter == "c" else cell is None
