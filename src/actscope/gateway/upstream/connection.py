"""One way to an engine: HTTP over a unix socket or TCP, with the engine's key, and without following redirects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping

import aiohttp
from yarl import URL

from actscope.errors import SettingsError, UpstreamError

_CONNECT_SECONDS = 5.0
_ASK_SECONDS = 30.0

#: What aiohttp would add by itself, and a client has not said.
_NOT_ADDED = ("content-type", "user-agent")


class Connection:
    """A client of `unix:/path` or `http://host:port`. `key` goes as a bearer token to this address only."""

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
        """One request; the answer's head has come, its body has not. `path` is sent as it is.

        Raises UpstreamError for a redirect: the engine cannot send the gateway elsewhere.
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
        """Status and body of one short request."""
        headers = {"content-type": "application/json"} if body is not None else None
        async with asyncio.timeout(_ASK_SECONDS):
            async with await self.send(method, path, body, headers) as response:
                return response.status, await response.read()

    async def close(self) -> None:
        await self._http.close()


def _open(address: str, key: str) -> tuple[aiohttp.ClientSession, str]:
    """A client, and the base of its URLs; `/v1` at the end, as base URLs of OpenAI clients have it, is left out."""
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
