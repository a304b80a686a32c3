"""JSON body of an error, in OpenAI's shape. Both the gateway and the engines answer with it."""

from __future__ import annotations

from typing import TypedDict


class ErrorFacts(TypedDict):
    """One error: its text, its kind, and where known the parameter and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """Body of an error response."""

    error: ErrorFacts
