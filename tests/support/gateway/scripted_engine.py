"""The scripted engine as a process: `python -m support.gateway.scripted_engine [--model NAME] [--kind vllm] [--parts N] …`.

It prints its card's id and its address when it is up, and ends on SIGTERM or SIGINT. One of kind "vllm" listens on a
port, as vLLM does, and serves its control sides over sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal

from aiohttp import web
from support.gateway.scripted import ScriptedEngine
from support.gateway.scripted_http import make_app, make_control_app

from actscope.ring.discovery import publish_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--no-chat-template", action="store_true", help="say so, and refuse chats")
    parser.add_argument("--kind", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--parts", type=int, default=1, help="stages, each with a ring of its own")
    parser.add_argument("--replicas", type=int, default=1, help="data-parallel engines, which take requests by turns")
    parser.add_argument(
        "--unseen", type=int, default=0, help="so many of the replicas publish no card: of another host"
    )
    parser.add_argument("--controls", default="up", choices=("up", "dead", "hung"), help="of kind vllm, until SIGUSR2")
    parser.add_argument("--plain-ids", action="store_true", help="as with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION")
    parser.add_argument("--features", type=int, default=0, help="have an SAE, and tell so many of its features")
    parser.add_argument("--port", type=int, default=0, help="of kind vllm")
    parser.add_argument("--key", default="", help="refuse requests under /v1 without it")
    parser.add_argument("--no-card", action="store_true", help="as if no plugin were installed, until SIGUSR1")
    asyncio.run(_serve(parser.parse_args()))


async def _serve(given: argparse.Namespace) -> None:
    engine = ScriptedEngine(
        given.model,
        not given.no_chat_template,
        given.kind,
        given.parts,
        given.features,
        given.replicas,
        given.plain_ids,
    )
    runners = [await _runner(make_app(engine, given.key))]
    endpoint = await _listen(runners[0], engine, given.port)
    if engine.is_vllm:
        runners += await _open_controls(engine, given.controls)
    if not given.no_card:
        _publish(engine, given.unseen)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _publish, engine, given.unseen)
    print(json.dumps({"card": engine.card.id, "endpoint": endpoint}), flush=True)
    await _until_stopped()
    with contextlib.suppress(OSError):
        engine.close()
    for runner in runners:
        await runner.cleanup()


def _publish(engine: ScriptedEngine, unseen: int) -> None:
    for part in engine.parts:
        if part.replica < engine.replicas - unseen:
            publish_card(part.card)


async def _open_controls(engine: ScriptedEngine, state: str) -> list[web.AppRunner]:
    """Serve the parts' control sides: now, or on SIGUSR2; until then nobody listens there, or nobody answers."""
    runners = [await _runner(make_control_app(engine, part)) for part in engine.parts]
    paths = [part.card.control.removeprefix("unix:") for part in engine.parts]
    silent = [await asyncio.start_unix_server(_say_nothing, path) for path in paths if state == "hung"]

    async def serve() -> None:
        for server in silent:
            server.close()
        for runner, path in zip(runners, paths, strict=True):
            await web.UnixSite(runner, path).start()

    if state == "up":
        await serve()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, lambda: loop.create_task(serve()))
    return runners


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await reader.read()


async def _runner(app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    return runner


async def _listen(runner: web.AppRunner, engine: ScriptedEngine, port: int) -> str:
    """Serve where the card says, or on a port that no card names; the address."""
    if not engine.is_vllm:
        await web.UnixSite(runner, engine.card.endpoint.removeprefix("unix:")).start()
        return engine.card.endpoint
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def _until_stopped() -> None:
    stopped = asyncio.Event()
    for number in (2, 15):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()


if __name__ == "__main__":
    main()
