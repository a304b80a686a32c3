"""`chat.completions` and `completions` of wrapped clients. Importing this module imports `openai`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, Unpack, cast, overload

import openai
from openai import AsyncStream, Stream
from openai.resources.chat.completions import AsyncCompletions as AsyncChatCompletions
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import AsyncCompletions, Completions
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from actscope.client.answers import ScoredChatCompletion, ScoredCompletion, scored
from actscope.client.asking import FIELD, Asked, ScoreOptions, body_with, is_asked, no_scores
from actscope.client.collector import ScoreCollector
from actscope.client.streams import AsyncScoredStream, ScoredStream

if TYPE_CHECKING:
    import httpx
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParamsBase
    from openai.types.completion_create_params import CompletionCreateParamsBase as TextParamsBase

    class CallOptions(TypedDict, total=False):
        """Options of any request of OpenAI's client."""

        extra_headers: Mapping[str, str]
        extra_query: Mapping[str, object]
        extra_body: Mapping[str, object]
        timeout: float | httpx.Timeout | None

    class ChatParams(ChatParamsBase, CallOptions):
        """Parameters of OpenAI's `chat.completions.create` but `stream`."""

    class TextParams(TextParamsBase, CallOptions):
        """Parameters of OpenAI's `completions.create` but `stream`."""


class WrappedClient(Protocol):
    """What the resources need of the client that they belong to."""

    score_options: ScoreOptions
    base_url: object


class _Call:
    """One request: adds the field that asks for scores, and finds them in the answer."""

    def __init__(self, client: object, asked: Asked, params: Mapping[str, object]) -> None:
        wrapped = cast(WrappedClient, client)
        self.server = str(wrapped.base_url)
        self._body = body_with(asked, wrapped.score_options, params.get("extra_body"))
        self._required = is_asked(self._body)
        self.params = {**params, "extra_body": self._body or None}

    def collector(self) -> ScoreCollector:
        return ScoreCollector(self.server, self._required)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add a note to the refusal of a server that does not know the field."""
        try:
            yield
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if FIELD in str(error) and not (error.param or "").startswith(f"{FIELD}."):
                error.add_note(str(no_scores(self.server)))
            raise

    def other(self, answer: object) -> object:
        """Return an answer that is neither an answer nor a stream: of `with_raw_response`. Text is refused."""
        if isinstance(answer, str) and self._required:
            raise no_scores(self.server)
        return answer


class ScoredChatCompletions(ChatCompletions):
    """`chat.completions` whose `create` returns scores."""

    @overload  # type: ignore[override]  # OpenAI's has each of the parameters, and a sentinel for those that are absent
    def create(
        self, *, stream: Literal[False] | None = None, actscope: Asked = None, **params: Unpack[ChatParams]
    ) -> ScoredChatCompletion: ...
    @overload
    def create(
        self, *, stream: Literal[True], actscope: Asked = None, **params: Unpack[ChatParams]
    ) -> ScoredStream[ChatCompletionChunk]: ...
    @overload
    def create(
        self, *, stream: bool, actscope: Asked = None, **params: Unpack[ChatParams]
    ) -> ScoredChatCompletion | ScoredStream[ChatCompletionChunk]: ...
    def create(self, *, actscope: Asked = None, **params: object) -> object:
        """Create a chat completion with scores.

        Args:
            stream: Whether the answer comes in chunks.
            actscope: Options for scores; False: a plain request. By default those of the client.
            **params: As in OpenAI's client.

        Raises:
            ScoresError: The server sends no scores. Errors of OpenAI's client are raised as they are.
        """
        call = _Call(self._client, actscope, params)
        with call.explained():
            answer = super().create(**call.params)  # type: ignore[call-overload]
        if isinstance(answer, Stream):
            return ScoredStream(answer, call.collector())
        if isinstance(answer, ChatCompletion):
            return scored(answer, ScoredChatCompletion, call.collector())
        return call.other(answer)


class ScoredTextCompletions(Completions):
    """`completions` whose `create` returns scores."""

    @overload  # type: ignore[override]
    def create(
        self, *, stream: Literal[False] | None = None, actscope: Asked = None, **params: Unpack[TextParams]
    ) -> ScoredCompletion: ...
    @overload
    def create(
        self, *, stream: Literal[True], actscope: Asked = None, **params: Unpack[TextParams]
    ) -> ScoredStream[Completion]: ...
    @overload
    def create(
        self, *, stream: bool, actscope: Asked = None, **params: Unpack[TextParams]
    ) -> ScoredCompletion | ScoredStream[Completion]: ...
    def create(self, *, actscope: Asked = None, **params: object) -> object:
        """Create a completion with scores (see `ScoredChatCompletions.create`)."""
        call = _Call(self._client, actscope, params)
        with call.explained():
            answer = super().create(**call.params)  # type: ignore[call-overload]
        if isinstance(answer, Stream):
            return ScoredStream(answer, call.collector())
        if isinstance(answer, Completion):
            return scored(answer, ScoredCompletion, call.collector())
        return call.other(answer)


class AsyncScoredChatCompletions(AsyncChatCompletions):
    """`chat.completions` of the asynchronous client, whose `create` returns scores."""

    @overload  # type: ignore[override]
    async def create(
        self, *, stream: Literal[False] | None = None, actscope: Asked = None, **params: Unpack[ChatParams]
    ) -> ScoredChatCompletion: ...
    @overload
    async def create(
        self, *, stream: Literal[True], actscope: Asked = None, **params: Unpack[ChatParams]
    ) -> AsyncScoredStream[ChatCompletionChunk]: ...
    @overload
    async def create(
        self, *, stream: bool, actscope: Asked = None, **params: Unpack[ChatParams]
    ) -> ScoredChatCompletion | AsyncScoredStream[ChatCompletionChunk]: ...
    async def create(self, *, actscope: Asked = None, **params: object) -> object:
        """Create a chat completion with scores (see `ScoredChatCompletions.create`)."""
        call = _Call(self._client, actscope, params)
        with call.explained():
            answer = await super().create(**call.params)  # type: ignore[call-overload]
        if isinstance(answer, AsyncStream):
            return AsyncScoredStream(answer, call.collector())
        if isinstance(answer, ChatCompletion):
            return scored(answer, ScoredChatCompletion, call.collector())
        return call.other(answer)


class AsyncScoredTextCompletions(AsyncCompletions):
    """`completions` of the asynchronous client, whose `create` returns scores."""

    @overload  # type: ignore[override]
    async def create(
        self, *, stream: Literal[False] | None = None, actscope: Asked = None, **params: Unpack[TextParams]
    ) -> ScoredCompletion: ...
    @overload
    async def create(
        self, *, stream: Literal[True], actscope: Asked = None, **params: Unpack[TextParams]
    ) -> AsyncScoredStream[Completion]: ...
    @overload
    async def create(
        self, *, stream: bool, actscope: Asked = None, **params: Unpack[TextParams]
    ) -> ScoredCompletion | AsyncScoredStream[Completion]: ...
    async def create(self, *, actscope: Asked = None, **params: object) -> object:
        """Create a completion with scores (see `ScoredChatCompletions.create`)."""
        call = _Call(self._client, actscope, params)
        with call.explained():
            answer = await super().create(**call.params)  # type: ignore[call-overload]
        if isinstance(answer, AsyncStream):
            return AsyncScoredStream(answer, call.collector())
        if isinstance(answer, Completion):
            return scored(answer, ScoredCompletion, call.collector())
        return call.other(answer)
