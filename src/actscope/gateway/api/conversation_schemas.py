"""Pydantic models of the Responses API and the Messages API, which validate requests and describe answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, StrictStr

from actscope.gateway.api.schemas import ActscopeAsk, ActscopePayload, Lenient


class ResponsesRequest(Lenient):
    """Request of OpenAI's Responses API. Other fields are passed to the engine unchanged."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    background: StrictBool | None = None
    actscope: StrictBool | ActscopeAsk | None = Field(
        None, description="request scores; without it the answer is a plain answer of the engine"
    )


class MessagesRequest(Lenient):
    """Request of Anthropic's Messages API. Other fields are passed to the engine unchanged."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    actscope: StrictBool | ActscopeAsk | None = Field(
        None, description="request scores; without it the answer is a plain answer of the engine"
    )


class ResponseAnswer(Lenient):
    """Response of OpenAI's Responses API."""

    id: str
    object: Literal["response"]
    status: str
    actscope: ActscopePayload | None = None


class MessageAnswer(Lenient):
    """Message of Anthropic's Messages API."""

    id: str
    type: Literal["message"]
    actscope: ActscopePayload | None = None
