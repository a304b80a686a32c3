"""Whole answers: OpenAI's own objects, with `scores`. Importing this module imports `openai`."""

from __future__ import annotations

from typing import TypeVar

from openai.types import Completion
from openai.types.chat import ChatCompletion

from actscope.client.collector import HasScores, ScoreCollector


class ScoredChatCompletion(HasScores, ChatCompletion):
    """OpenAI's chat completion, with the scores of its tokens."""


class ScoredCompletion(HasScores, Completion):
    """OpenAI's completion, with the scores of its tokens. With several prompts, choices are numbered prompt by prompt."""


Answer = TypeVar("Answer", ScoredChatCompletion, ScoredCompletion)


def scored(answer: ChatCompletion | Completion, kind: type[Answer], collector: ScoreCollector) -> Answer:
    """Return the same answer with scores.

    Args:
        answer: What OpenAI's client returned. Its class is changed; everything else in it stays as it is.
        kind: The class with scores.
        collector: Takes the scores.

    Raises:
        ScoresError: The answer has no scores although they were asked for, or malformed ones.
    """
    collector.add(answer.choices, ended=True)
    answer.__class__ = kind  # adds no field, so the layout is the same
    assert isinstance(answer, kind)
    object.__setattr__(answer, "_collector", collector)
    return answer
