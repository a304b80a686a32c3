"""Streamed answers: OpenAI's own chunks, with the scores so far beside them. Importing this module imports `openai`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from openai import AsyncStream, Stream
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from actscope.client.collector import HasScores, ScoreCollector
from actscope.client.tokens import ScoredToken

if TYPE_CHECKING:
    from typing import Self

Chunk = TypeVar("Chunk", bound=ChatCompletionChunk | Completion)


class ScoredStream(HasScores, Generic[Chunk]):
    """A stream of OpenAI's chunks. Iterate over it for chunks, or over `tokens()` for tokens with scores.

    Attributes:
        response: The HTTP response.

    Raises:
        ScoresError: While iterating: the scores that were asked for do not come, are malformed, or were cut off.
    """

    def __init__(self, stream: Stream[Chunk], collector: ScoreCollector) -> None:
        self._collector = collector
        self._stream = stream
        self._chunks = self._read()
        self.response = stream.response

    def _read(self) -> Iterator[Chunk]:
        for chunk in self._stream:
            self._collector.add(chunk.choices or ())
            yield chunk
        self._collector.end()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def tokens(self, choice: int = 0) -> Iterator[ScoredToken]:
        """Read the stream, and yield each token of a choice once its scores are known.

        A token comes one pass after it was sampled, the last one (whose scores are never computed) at the end. To show
        tokens before their scores, iterate over the chunks and look at `scores`.
        """
        n = 0
        for _ in self:
            for token in self._collector.resolved(choice, n):
                n += 1
                yield token
        yield from self._collector.resolved(choice, n)

    def close(self) -> None:
        """Close the connection. A request that still runs is cancelled."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncScoredStream(HasScores, Generic[Chunk]):
    """The same for `async for`.

    Attributes:
        response: The HTTP response.

    Raises:
        ScoresError: While iterating: the scores that were asked for do not come, are malformed, or were cut off.
    """

    def __init__(self, stream: AsyncStream[Chunk], collector: ScoreCollector) -> None:
        self._collector = collector
        self._stream = stream
        self._chunks = self._read()
        self.response = stream.response

    async def _read(self) -> AsyncIterator[Chunk]:
        async for chunk in self._stream:
            self._collector.add(chunk.choices or ())
            yield chunk
        self._collector.end()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def tokens(self, choice: int = 0) -> AsyncIterator[ScoredToken]:
        """Read the stream, and yield each token of a choice once its scores are known (see `ScoredStream.tokens`)."""
        n = 0
        async for _ in self:
            for token in self._collector.resolved(choice, n):
                n += 1
                yield token
        for token in self._collector.resolved(choice, n):
            yield token

    async def close(self) -> None:
        """Close the connection. A request that still runs is cancelled."""
        await self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
