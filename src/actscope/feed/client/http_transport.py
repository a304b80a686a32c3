"""HTTP transport: one persistent connection. Rows are read from the socket directly into the tensor."""

from __future__ import annotations

import http.client
import re
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from actscope.errors import (
    ActscopeError,
    FeedEnded,
    FeedError,
    FeedNotReady,
    RequestRefused,
    SettingsError,
    SiteError,
    UpstreamError,
)
from actscope.runtime.decoding import decode_json

#: Largest answer that is read into memory: JSON, or a safetensors file of rows with labels.
_MOST_BODY = 4 << 30
_MOST_REFUSAL = 1 << 20


class HttpTransport:
    """Connection to one feed. One request at a time, from one thread.

    Raises:
        SettingsError: `url` is not of the form http://host:port.
    """

    def __init__(self, url: str, token: str, *, timeout: float) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"feed {url!r}: expected http://host:port")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {token}"}

    def ask(self, path: str, *, method: str = "GET", **query: str | float) -> http.client.HTTPResponse:
        """Send a request and return the response, whose body is not read yet.

        Raises:
            UpstreamError: The feed cannot be reached.
            FeedEnded: Status 410.
            FeedNotReady: Status 429, or code `not_ready`.
            SiteError: Code `unknown_site`.
            SettingsError: Status 401 or 403.
            FeedError: Another status of 500 or above.
            RequestRefused: Code `too_many_groups`, or another status of 400 or above.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        for attempt in (1, 2):
            fresh = self._connection.sock is None
            try:
                self._connection.request(method, target, headers=self._headers)
                answer = self._connection.getresponse()
                break
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                self._connection.close()  # the feed may close an idle connection: try once more on a new one
                if fresh or attempt == 2:
                    raise self._silent(error) from error
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                raise self._silent(error) from error
        if answer.status >= 400:
            raise _refusal(answer)
        return answer

    def json(self, path: str, *, method: str = "GET", **query: str | float) -> Any:
        """Send a request and return the decoded JSON body. Raises as `ask` does."""
        answer = self.ask(path, method=method, **query)
        return decode_json(self.read(answer), object, UpstreamError, f"{self.url}{path}: the answer is not JSON")

    def read(self, answer: http.client.HTTPResponse) -> bytes:
        """Return the body. Raises UpstreamError if the connection breaks."""
        try:
            body = answer.read(_MOST_BODY + 1)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._silent(error) from error
        if len(body) > _MOST_BODY:
            self._connection.close()
            raise UpstreamError(f"{self.url}: an answer of more than {_MOST_BODY} bytes: ask for fewer rows at once")
        return body

    def read_into(self, answer: http.client.HTTPResponse, out: memoryview) -> None:
        """Read the body into `out`. Raises UpstreamError if the connection breaks or the body is not exactly as long."""
        have = 0
        try:
            while have < len(out) and (n := answer.readinto(out[have:])):
                have += n
            rest = answer.read(1) if have == len(out) else b""
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._silent(error) from error
        if have < len(out) or rest:
            self._connection.close()
            why = "more followed" if rest else f"the feed closed the connection after {have}"
            raise UpstreamError(f"{self.url}: expected {len(out)} bytes of rows; {why}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _silent(self, error: Exception) -> UpstreamError:
        return UpstreamError(
            f"{self.url}: the feed does not answer ({type(error).__name__}: {error}); is `actscope feed` running?"
        )


class _Reason(msgspec.Struct):
    """The feed's reason to refuse a request."""

    message: str
    code: str | None = None
    param: str | None = None


class _Refusal(msgspec.Struct):
    """Body of a refusal."""

    error: _Reason


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After header; 1 if it has none."""
    return float(text) if text and re.fullmatch(r"\d{1,4}(\.\d{1,6})?", text) else 1.0


def _refusal(answer: http.client.HTTPResponse) -> ActscopeError:
    """Return the error that an unsuccessful response stands for."""
    try:
        error = decode_json(answer.read(_MOST_REFUSAL), _Refusal, UpstreamError, "").error
    except (UpstreamError, OSError, http.client.HTTPException):
        error = _Reason(f"HTTP {answer.status}")
    message, code, param = error.message, error.code, error.param
    if answer.status == 410:
        return FeedEnded(message)
    if code == "unknown_site":
        return SiteError(message)
    if code == "too_many_groups":  # as from shared memory: to wait for a group's end may take for ever
        return RequestRefused(message, param=param, code=code)
    if code == "not_ready" or answer.status == 429:
        return FeedNotReady(message, retry_after=_seconds(answer.headers.get("Retry-After")))
    if answer.status in (401, 403):
        return SettingsError(f"the feed refuses this client: {message}")
    if answer.status >= 500:
        return FeedError(message)
    return RequestRefused(message, param=param, code=code)
