"""HTTP client for one address of an engine: unix socket or TCP, with the engine's API key, without following redirects."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, Mapping
from types import SimpleNamespace

import aiohttp
from yarl import URL

from actscope.errors import SettingsError, UpstreamError
from actscope.gateway.upstream.headers import returned
from actscope.gateway.upstream.sse import read_whole

#: How long one attempt to connect takes at most, in seconds, and how many there are. A busy server drops what its queue of new
#: connections cannot hold, and a new attempt reaches it sooner than the kernel's own, which wait ever longer.
_CONNECT_SECONDS = 5.0
_CONNECT_ATTEMPTS = 6
_ASK_SECONDS = 30.0
_ASK_BYTES = 64 << 20
#: How long an idle connection is kept, in seconds: less than the 5 s after which uvicorn, and so vLLM, closes it.
_KEPT_SECONDS = 3.0
#: Most connections that an engine may have closed unnoticed before a request gives up.
_MOST_STALE = 16

#: Characters that no server may send in a header value, and those that a header value cannot be encoded with.
_NO_HEADER_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")

#: Headers that aiohttp would add on its own although the client did not send them.
_NOT_ADDED = ("content-type", "user-agent")


class _Used:
    """Whether a request went over a connection that an earlier one had used."""

    before = False


async def _note_use(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    context.trace_request_ctx.before = True


class Connection:
    """HTTP client for one address.

    Args:
        address: `unix:/path`, `http://host:port` or `https://host:port`. A trailing `/v1` is ignored.
        key: API key, sent as a bearer token to this address only. "" sends none.

    Raises:
        SettingsError: `address` has another form.
    """

    def __init__(self, address: str, key: str = "") -> None:
        self.address = address
        self._http, self._base = _open(address, key)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request and return the response once its head has arrived. The caller reads the body and closes it.

        Connecting times out after 30 s. There is no limit on the time of the whole request. A body in one piece is sent again if
        a connection that was kept from an earlier request turns out to be closed: the engine has not read it then, or died.

        Args:
            method: HTTP method.
            path: Path and query, already quoted; sent unchanged.
            body: Body in one piece or as a stream; None for none.
            headers: Headers to send besides the key and `Accept-Encoding: identity`.

        Raises:
            UpstreamError: The engine answered with a redirect, which is never followed, or with a status or a header that
                cannot be returned to a client.
            aiohttp.ClientError: The connection could not be made, or broke.
        """
        url = URL(self._base + path, encoded=True)
        response = await self._request(method, url, body, headers)
        try:
            _check_head(response)
        except UpstreamError:
            response.close()
            raise
        return response

    async def _request(
        self, method: str, url: URL, body: bytes | AsyncIterable[bytes] | None, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        stale = unanswered = 0
        while True:
            used = _Used()
            try:
                return await self._http.request(
                    method, url, data=body, headers=headers, allow_redirects=False, skip_auto_headers=_NOT_ADDED,
                    trace_request_ctx=used,
                )  # fmt: skip
            except aiohttp.ConnectionTimeoutError:  # nothing of the request was sent
                unanswered += 1
                if unanswered == _CONNECT_ATTEMPTS:
                    raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                stale += 1
                if not used.before or not isinstance(body, bytes | None) or stale == _MOST_STALE:
                    raise

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send one short request and return status and body.

        Raises:
            TimeoutError: The answer took more than 30 s.
            UpstreamError: As `send`, or the answer has more than 64 MiB.
            aiohttp.ClientError: As `send`.
        """
        headers = {"content-type": "application/json"} if body is not None else None
        async with asyncio.timeout(_ASK_SECONDS):
            async with await self.send(method, path, body, headers) as response:
                return response.status, await read_whole(response, _ASK_BYTES)

    async def close(self) -> None:
        """Close all connections to the address."""
        await self._http.close()


def _check_head(response: aiohttp.ClientResponse) -> None:
    """Raise UpstreamError for a head that a client cannot be given: the server of the gateway would cut its connection."""
    status = response.status
    if 300 <= status < 400 and status != 304:
        raise UpstreamError(f"the engine answered {status}: redirects are not followed")
    if not 200 <= status < 600:
        raise UpstreamError(f"the engine answered with status {status}: expected 200 to 599")
    for name, value in returned(response.headers).items():
        if _NO_HEADER_VALUE.search(value):
            raise UpstreamError(f"the engine answered with a header {name} that has unprintable characters")


def _open(address: str, key: str) -> tuple[aiohttp.ClientSession, str]:
    """Return a client and the base of its URLs, without the trailing `/v1` that base URLs of OpenAI clients have."""
    if address.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(
            address.removeprefix("unix:"), limit=0, keepalive_timeout=_KEPT_SECONDS
        )
        base = "http://engine"
    elif address.startswith(("http://", "https://")):
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS)
        base = address.rstrip("/").removesuffix("/v1")
    else:
        raise SettingsError(f"upstream: expected unix:/path or http://host:port, found {address!r}")
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_use)
    http = aiohttp.ClientSession(
        connector=connector,
        trace_configs=[trace],
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
        read_bufsize=1 << 18,
        trust_env=False,
    )
    return http, base
