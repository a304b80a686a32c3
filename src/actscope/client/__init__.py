"""Scores for programs that use OpenAI's Python client: `wrap` a client, or look the scores of a response up by its id.

client = actscope.client.wrap(openai.OpenAI(base_url="http://127.0.0.1:6969/v1", api_key=token))
answer = client.chat.completions.create(model=model, messages=messages)
for token in answer.scores:
    print(token.position, token.text, token.scores["danger"].value)

`import actscope` does not import `openai`; the names here do, on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.client.answers import ScoredChatCompletion, ScoredCompletion
    from actscope.client.asking import ScoreOptions
    from actscope.client.clients import ScoredAsyncOpenAI, ScoredOpenAI, scores, wrap
    from actscope.client.payload import Coverage, ProbeColumn
    from actscope.client.streams import AsyncScoredStream, ScoredStream
    from actscope.client.tokens import Feature, Score, ScoredToken, Scores, ScoreState

__all__ = [
    "AsyncScoredStream",
    "Coverage",
    "Feature",
    "ProbeColumn",
    "Score",
    "ScoreOptions",
    "ScoreState",
    "ScoredAsyncOpenAI",
    "ScoredChatCompletion",
    "ScoredCompletion",
    "ScoredOpenAI",
    "ScoredStream",
    "ScoredToken",
    "Scores",
    "scores",
    "wrap",
]

_HOMES = {
    "answers": ("ScoredChatCompletion", "ScoredCompletion"),
    "asking": ("ScoreOptions",),
    "clients": ("ScoredAsyncOpenAI", "ScoredOpenAI", "scores", "wrap"),
    "payload": ("Coverage", "ProbeColumn"),
    "streams": ("AsyncScoredStream", "ScoredStream"),
    "tokens": ("Feature", "Score", "ScoreState", "ScoredToken", "Scores"),
}

__getattr__, __dir__ = attach(
    __name__, {name: f"{__name__}.{module}:{name}" for module, names in _HOMES.items() for name in names}
)
