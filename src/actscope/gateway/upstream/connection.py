"""HTTP client for one address of an engine: unix socket or TCP, with the engine's API key, without following redirects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping

import aiohttp
from yarl import URL

from actscope.errors import SettingsError, UpstreamError
from actscope.gateway.upstream.sse import read_whole

_CONNECT_SECONDS = 5.0
_ASK_SECONDS = 30.0
_ASK_BYTES = 64 << 20

#: Headers that aiohttp would add on its own although the client did not send them.
_NOT_ADDED = ("content-type", "user-agent")


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

        Connecting times out after 5 s. There is no limit on the time of the whole request.

        Args:
            method: HTTP method.
            path: Path and query, already quoted; sent unchanged.
            body: Body in one piece or as a stream; None for none.
            headers: Headers to send besides the key and `Accept-Encoding: identity`.

        Raises:
            UpstreamError: The engine answered with a redirect, which is never followed.
            aiohttp.ClientError: The connection could not be made, or broke.
        """
        url = URL(self._base + path, encoded=True)
        response = await self._http.request(
            method, url, data=body, headers=headers, allow_redirects=False, skip_auto_headers=_NOT_ADDED
        )
        if 300 <= response.status < 400 and response.status != 304:
            response.close()
            raise UpstreamError(f"the engine answered {response.status}: redirects are not followed")
        return response

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


def _open(address: str, key: str) -> tuple[aiohttp.ClientSession, str]:
    """Return a client and the base of its URLs, without the trailing `/v1` that base URLs of OpenAI clients have."""
    if address.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(address.removeprefix("unix:"), limit=0)
        base = "http://engine"
    elif address.startswith(("http://", "https://")):
        connector = aiohttp.TCPConnector(limit=0)
        base = address.rstrip("/").removesuffix("/v1")
    else:
        raise SettingsError(f"upstream: expected unix:/path or http://host:port, found {address!r}")
    http = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
        read_bufsize=1 << 18,
        trust_env=False,
    )
    return http, base
