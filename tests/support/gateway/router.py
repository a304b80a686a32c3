"""A router as a process: `python -m support.gateway.router URL URL …` sends each request to the next of these servers."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys

import aiohttp
from aiohttp import web


class Router:
    """Sends each request to the next server that takes it. What a load balancer without affinity does."""

    def __init__(self, servers: list[str]) -> None:
        self._turns = itertools.cycle(servers)
        self._n = len(servers)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        for _ in range(self._n):
            try:
                return await self._forward(request, body, next(self._turns))
            except aiohttp.ClientConnectorError:
                continue
        return web.Response(status=503)

    async def _forward(self, request: web.Request, body: bytes, server: str) -> web.StreamResponse:
        headers = {n: v for n, v in request.headers.items() if n.lower() in ("content-type", "x-request-id")}
        async with (
            aiohttp.ClientSession() as http,
            http.request(request.method, server + request.path_qs, data=body, headers=headers) as answer,
        ):
            response = web.StreamResponse(
                status=answer.status, headers={"content-type": answer.headers["content-type"]}
            )
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response


async def _serve() -> None:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", Router(sys.argv[1:]).forward)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"card": "", "endpoint": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
