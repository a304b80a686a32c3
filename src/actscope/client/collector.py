"""Scores of all choices of one answer, taken from the objects that OpenAI's client made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from actscope.client.asking import FIELD, cut_off, no_scores
from actscope.client.tokens import ScoredToken, Scores
from actscope.errors import ScoresNotFound


class AnsweredChoice(Protocol):
    """A choice of an answer or of a chunk. Fields that OpenAI's API does not have are in `model_extra`."""

    index: int

    @property
    def finish_reason(self) -> str | None:
        """Return why the choice ended, or None while it runs."""

    @property
    def model_extra(self) -> dict[str, object] | None:
        """Return the fields that the model does not declare."""


class ScoreCollector:
    """Scores of the choices of one answer, by index.

    Args:
        server: Address of the server, for messages.
        required: Whether scores were asked for, so that an answer without them is an error.
    """

    def __init__(self, server: str, required: bool) -> None:
        self._server = server
        self._required = required
        self._scores: dict[int, Scores] = {}

    @property
    def all(self) -> Mapping[int, Scores]:
        """Return the scores of each choice so far."""
        return self._scores

    def add(self, choices: Sequence[AnsweredChoice], *, ended: bool = False) -> None:
        """Take the choices of an answer (`ended`) or of a chunk.

        Raises:
            ScoresError: A payload is malformed; or a choice ends without scores although they were asked for.
        """
        for choice in choices:
            payload = (choice.model_extra or {}).get(FIELD)
            if payload is not None:
                self._scores.setdefault(choice.index, Scores()).add(payload)
            elif self._required and choice.index not in self._scores and (ended or choice.finish_reason is not None):
                raise no_scores(self._server)

    def end(self) -> None:
        """Check that the stream was whole.

        Raises:
            ScoresError: It was asked for scores, and a choice has none or not all of them.
        """
        if self._required and not (self._scores and all(scores.complete for scores in self._scores.values())):
            raise cut_off(self._server)

    def choice(self, index: int) -> Scores:
        """Return the scores of one choice.

        Raises:
            ScoresNotFound: There are none.
        """
        if index not in self._scores:
            known = ", ".join(map(str, sorted(self._scores))) or "none"
            reason = "" if self._required else "; this request did not ask for scores"
            raise ScoresNotFound(f"no scores of choice {index}: choices with scores: {known}{reason}")
        return self._scores[index]

    def resolved(self, index: int, after: int) -> list[ScoredToken]:
        """Return the tokens of a choice from number `after` on of which no score is pending."""
        scores = self._scores.get(index)
        return [] if scores is None else scores[after : scores.n_resolved]


class HasScores:
    """What an answer and a stream have in common: the scores of their choices."""

    __slots__ = ()
    _collector: ScoreCollector

    @property
    def scores(self) -> Scores:
        """Return the scores of the first choice. While a stream is read they grow.

        Raises:
            ScoresNotFound: None have come yet, or the request did not ask for them.
        """
        return self._collector.choice(0)

    @property
    def all_scores(self) -> Mapping[int, Scores]:
        """Return the scores of every choice so far, by its index."""
        return self._collector.all
