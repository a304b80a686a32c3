"""OpenAI's clients with scores, and the look-up of a request's scores. Importing this module imports `openai`."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, Unpack, cast, overload

import openai
from openai.resources.chat import AsyncChat, Chat

from actscope.client.asking import ScoreOptions
from actscope.client.completions import (
    AsyncScoredChatCompletions,
    AsyncScoredTextCompletions,
    ScoredChatCompletions,
    ScoredTextCompletions,
)
from actscope.client.tokens import Scores
from actscope.errors import ScoresError, ScoresNotFound, SettingsError, UnknownArgument
from actscope.near_miss import hint, hinted

if TYPE_CHECKING:
    from typing import Self


#: Form of the gateway's request ids. No other text is put into a path.
_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._:-]{1,256}")
#: Codes of a gateway's answers 404 to a look-up.
_NOT_ONE_REQUEST = ("request_not_found", "several_requests")


class ScoredChat(Chat):
    """`chat` of a wrapped client."""

    @cached_property
    def completions(self) -> ScoredChatCompletions:
        """Return `chat.completions`, with scores."""
        return ScoredChatCompletions(self._client)


class AsyncScoredChat(AsyncChat):
    """`chat` of a wrapped asynchronous client."""

    @cached_property
    def completions(self) -> AsyncScoredChatCompletions:
        """Return `chat.completions`, with scores."""
        return AsyncScoredChatCompletions(self._client)


class ScoredOpenAI(openai.OpenAI):
    """OpenAI's client whose completions have scores. Made by `wrap`.

    It is an `openai.OpenAI` and can be given to frameworks that take one.

    Attributes:
        score_options: Options that each request is sent with.
    """

    score_options: ScoreOptions

    @cached_property
    def chat(self) -> ScoredChat:
        """Return `chat`, with scores."""
        return ScoredChat(self)

    @cached_property
    def completions(self) -> ScoredTextCompletions:
        """Return `completions`, with scores."""
        return ScoredTextCompletions(self)

    def scores(self, id: str, *, features: bool = False) -> Scores:
        """Look up the tokens and scores of a request by the id of its response (see `actscope.client.scores`)."""
        with _Lookup(id, str(self.base_url), features) as lookup:
            lookup.found = self.get(lookup.path, cast_to=object, options={"params": lookup.query})
        return lookup.scores

    def copy(self, **changes: object) -> Self:
        """Return a client with other options, with scores as well."""
        copied = super().copy(**changes)  # type: ignore[arg-type]
        _adopted(copied, type(self), self.score_options)
        return copied

    with_options = copy


class ScoredAsyncOpenAI(openai.AsyncOpenAI):
    """OpenAI's asynchronous client whose completions have scores. Made by `wrap`.

    It is an `openai.AsyncOpenAI` and can be given to frameworks that take one.

    Attributes:
        score_options: Options that each request is sent with.
    """

    score_options: ScoreOptions

    @cached_property
    def chat(self) -> AsyncScoredChat:
        """Return `chat`, with scores."""
        return AsyncScoredChat(self)

    @cached_property
    def completions(self) -> AsyncScoredTextCompletions:
        """Return `completions`, with scores."""
        return AsyncScoredTextCompletions(self)

    async def scores(self, id: str, *, features: bool = False) -> Scores:
        """Look up the tokens and scores of a request by the id of its response (see `actscope.client.scores`)."""
        with _Lookup(id, str(self.base_url), features) as lookup:
            lookup.found = await self.get(lookup.path, cast_to=object, options={"params": lookup.query})
        return lookup.scores

    def copy(self, **changes: object) -> Self:
        """Return a client with other options, with scores as well."""
        copied = super().copy(**changes)  # type: ignore[arg-type]
        _adopted(copied, type(self), self.score_options)
        return copied

    with_options = copy


Wrapped = TypeVar("Wrapped", ScoredOpenAI, ScoredAsyncOpenAI)


@overload
def wrap(client: openai.OpenAI, **options: Unpack[ScoreOptions]) -> ScoredOpenAI: ...
@overload
def wrap(client: openai.AsyncOpenAI, **options: Unpack[ScoreOptions]) -> ScoredAsyncOpenAI: ...
def wrap(
    client: openai.OpenAI | openai.AsyncOpenAI, **options: Unpack[ScoreOptions]
) -> ScoredOpenAI | ScoredAsyncOpenAI:
    """Return a client like this one, whose completions have scores.

    `chat.completions.create` and `completions.create` send the `actscope` field and return OpenAI's own objects (whole answers,
    or a stream of chunks) with `scores`. All other methods are unchanged.

    Args:
        client: OpenAI's client, with the gateway's address as `base_url` and its token as `api_key`. It is not changed, and
            shares its connections with the new one.
        **options: Options for scores that each request is sent with (see `ScoreOptions`). `create(actscope=...)` overrides them.

    Returns:
        The client. It is also an `openai.OpenAI` or `openai.AsyncOpenAI`.

    Raises:
        SettingsError: It is another kind of client, or there is no such option.
    """
    unknown = set(options) - set(ScoreOptions.__annotations__)
    if unknown:
        known = ", ".join(ScoreOptions.__annotations__)
        near = hint(min(unknown), ScoreOptions.__annotations__)
        raise UnknownArgument(f"wrap: expected options among {known}; found {', '.join(sorted(unknown))}{near}")
    if isinstance(client, openai.OpenAI):
        return _adopted(client.copy(), _wrapped_class(ScoredOpenAI, type(client)), options)
    if isinstance(client, openai.AsyncOpenAI):
        return _adopted(client.copy(), _wrapped_class(ScoredAsyncOpenAI, type(client)), options)
    raise SettingsError(f"wrap: expected openai.OpenAI or openai.AsyncOpenAI, found {type(client).__name__}")


def _wrapped_class(kind: type[Wrapped], own: type) -> type[Wrapped]:
    """Return the class of a wrapped client. A class that the caller derived from OpenAI's stays a base of it."""
    if own in kind.__mro__:
        return kind
    return own if issubclass(own, kind) else cast(type[Wrapped], type(f"Scored{own.__name__}", (kind, own), {}))


def _adopted(client: openai.OpenAI | openai.AsyncOpenAI, kind: type[Wrapped], options: ScoreOptions) -> Wrapped:
    """Make a client of its own (a copy) one with scores."""
    for name in ("chat", "completions"):  # older versions of openai make them at once, later ones at the first use
        vars(client).pop(name, None)
    client.__class__ = kind
    assert isinstance(client, kind)
    client.score_options = options
    return client


@hinted
def scores(id: str, *, base_url: str | None = None, api_key: str | None = None, features: bool = False) -> Scores:
    """Look up the tokens and scores of a request by the id of its response.

    For frameworks that drop unknown fields: the gateway has the scores of each of its recent completions, whether or not they
    were asked for. Clients made by `wrap` have the same as a method.

    Args:
        id: Id of the response, such as "chatcmpl-6f…", also in its header X-Request-Id. A response with several choices has
            one request for each, such as "0_chatcmpl-6f…"; the error names them.
        base_url: Address of the gateway, such as "http://127.0.0.1:6969/v1". By default that of the variable OPENAI_BASE_URL.
        api_key: Its token. By default that of the variable OPENAI_API_KEY.
        features: Whether the features of the engine's SAE are returned as well.

    Returns:
        The scores, of all probes, prompt included. `complete` is False while the request runs.

    Raises:
        ScoresNotFound: The gateway does not know the request, or has forgotten it.
        ScoresError: The server is no actscope gateway. Errors of OpenAI's client are raised as they are.
    """
    with openai.OpenAI(base_url=base_url, api_key=api_key) as client:
        return wrap(client).scores(id, features=features)


class _Lookup:
    """One look-up: its path and query, and what its answer means. As a context it explains errors.

    Attributes:
        found: The answer, as decoded JSON.
    """

    def __init__(self, id: str, server: str, features: bool) -> None:
        if not _ID.fullmatch(id):
            raise ScoresNotFound(f"look-up of scores: expected the id of a response, found {id[:200]!r}")
        self.path = f"/actscope/requests/{id}"
        self.query: dict[str, object] = {"features": "true"} if features else {}
        self.found: object = None
        self._id = id
        self._server = server

    @property
    def scores(self) -> Scores:
        """Return the scores in the answer. Raises ScoresError if they are malformed."""
        if not isinstance(self.found, dict):
            raise self._no_gateway("an answer that is no JSON object")
        scores = Scores()
        scores.add(self.found)
        return scores

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, openai.NotFoundError) and error.code not in _NOT_ONE_REQUEST:
            raise self._no_gateway("no such path") from error
        if isinstance(error, openai.APIStatusError) and error.status_code in (404, 410):
            raise ScoresNotFound(f"{self._server}: {error.message}") from error

    def _no_gateway(self, found: str) -> ScoresError:
        return ScoresError(
            f"scores of {self._id[:200]!r} at {self._server}: expected an actscope gateway, found {found}. "
            "Set base_url to that of `actscope serve` or `actscope gateway`, which ends in /v1"
        )
