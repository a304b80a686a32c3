"""The scripted engine as a process: `python -m actscope.testing.scripted_engine [--model NAME] [--no-chat-template]`.

It prints its card's id and its address when it is up, and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json

from aiohttp import web

from actscope.ring.runtime import publish_card
from actscope.testing.scripted import ScriptedEngine
from actscope.testing.scripted_http import make_app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--no-chat-template", action="store_true", help="say so, and refuse chats")
    given = parser.parse_args()
    asyncio.run(_serve(given.model, not given.no_chat_template))


async def _serve(model: str, has_chat_template: bool) -> None:
    engine = ScriptedEngine(model, has_chat_template)
    runner = web.AppRunner(make_app(engine), handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, engine.card.endpoint.removeprefix("unix:")).start()
    publish_card(engine.card)
    print(json.dumps({"card": engine.card.id, "endpoint": engine.card.endpoint}), flush=True)
    stopped = asyncio.Event()
    for number in (2, 15):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        with contextlib.suppress(OSError):
            engine.close()
        await runner.cleanup()


if __name__ == "__main__":
    main()
