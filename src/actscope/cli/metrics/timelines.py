"""Ask a gateway for its requests and for the timelines of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
import typer

from actscope.cli.common.engines import asked
from actscope.errors import MetricsError, SettingsError, UpstreamError
from actscope.metrics.timeline.answer import AnsweredTimeline, checked

#: Most tokens of one answer of the gateway.
MOST_TOKENS = 4096

GatewayUrl = Annotated[
    str,
    typer.Option(
        "--url",
        metavar="URL",
        envvar="ACTSCOPE_GATEWAY",
        help="Address of the gateway. The link that it printed at start brings the token along; else it is read from "
        "ACTSCOPE_TOKEN.",
    ),
]
GatewayToken = Annotated[
    str, typer.Option("--access", metavar="TOKEN", envvar="ACTSCOPE_TOKEN", help="Token of the gateway.")
]
DEFAULT_URL = "http://127.0.0.1:6969"


class RequestScores(msgspec.Struct, frozen=True):
    """Scores of consecutive positions from `start`, one row each."""

    start: int
    rows: list[list[float | None]]


class NamedProbe(msgspec.Struct, frozen=True):
    """The name of a column of scores."""

    id: str


class ScoredRequest(msgspec.Struct, frozen=True):
    """What is read of a request's scores."""

    probes: list[NamedProbe] = []
    scores: RequestScores | None = None

    def by_position(self) -> dict[int, dict[str, float]]:
        """Return the scores that were computed, by position and probe."""
        if self.scores is None:
            return {}
        names = [probe.id for probe in self.probes]
        return {
            self.scores.start + i: {name: one for name, one in zip(names, row, strict=False) if one is not None}
            for i, row in enumerate(self.scores.rows)
        }


class GatewayTimelines:
    """Timelines of the requests of one gateway.

    Args:
        url: Its address, or the link that it printed.
        access: Its token; "": that in the link.

    Raises:
        SettingsError: `url` is no address.
    """

    def __init__(self, url: str, access: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise SettingsError(f"--url {url}: expected an address such as {DEFAULT_URL}")
        self.base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._access = access or parse_qs(parts.query).get("token", [""])[0]

    def ask(self, path: str) -> dict[str, object]:
        """Return the JSON object that the gateway answers. Raises UpstreamError if it answers with an error, or not."""
        status, found = asked(self.base, path, self._access)
        if status == 200:
            return found
        error = found.get("error")
        said = (
            str(error.get("message")) if isinstance(error, dict) else "it is not a gateway of this version of actscope"
        )
        if status in (401, 403):
            said += "; give the link that the gateway printed at start as --url, or its token in ACTSCOPE_TOKEN"
        raise UpstreamError(f"{self.base} answers {status}: {said}")

    def requests(self) -> list[str]:
        """Return the ids of the requests that the gateway knows, newest first. Raises UpstreamError if it knows none."""
        listed = self.ask("/v1/actscope/requests").get("requests")
        if not isinstance(listed, list) or not listed:
            raise UpstreamError(f"{self.base} knows no request yet: send one, then ask again")
        return [str(one.get("request")) for one in listed if isinstance(one, dict)]

    def answer(self, request: str, query: str) -> dict[str, object]:
        """Return the gateway's answer for a request's timeline, as it is. Raises UpstreamError."""
        return self.ask(f"{_path(request)}/timeline?{query}")

    def decoded(self, answer: dict[str, object]) -> AnsweredTimeline:
        """Return an answer as a timeline. Raises UpstreamError if it is of another version."""
        try:
            return checked(msgspec.convert(answer, AnsweredTimeline), self.base)
        except (msgspec.ValidationError, MetricsError) as error:
            raise UpstreamError(f"{self.base}: the timeline is not of this version of actscope: {error}") from error

    def whole(self, request: str) -> AnsweredTimeline:
        """Return the timeline of a request with all its tokens. Raises UpstreamError."""
        found = self.decoded(self.answer(request, f"limit={MOST_TOKENS}"))
        tokens = list(found.tokens)
        while len(tokens) % MOST_TOKENS == 0 and len(tokens) < found.completion_tokens and found.tokens:
            more = self.decoded(self.answer(request, f"first={len(tokens)}&limit={MOST_TOKENS}")).tokens
            if not more:
                break
            tokens += more
        return msgspec.structs.replace(found, tokens=tokens)

    def scores(self, request: str) -> dict[int, dict[str, float]]:
        """Return the scores of a request by position and probe. Raises UpstreamError."""
        found = self.ask(_path(request))
        try:
            return msgspec.convert(found, ScoredRequest).by_position()
        except msgspec.ValidationError as error:
            raise UpstreamError(f"{self.base}: the scores are not of this version of actscope: {error}") from error

    def each(self, requests: Sequence[str]) -> Iterator[AnsweredTimeline]:
        """Yield the timelines of these requests, or of all that the gateway knows, oldest first. Raises UpstreamError.

        A request that leaves the gateway's log after it was listed is left out.
        """
        if requests:
            yield from map(self.whole, requests)
            return
        for request in reversed(self.requests()):
            status, _ = asked(self.base, f"{_path(request)}/timeline?limit=1", self._access)
            if status not in (404, 410):
                yield self.whole(request)


def _path(request: str) -> str:
    return f"/v1/actscope/requests/{quote(request, safe='')}"
