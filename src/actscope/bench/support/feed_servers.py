"""Servers of `actscope bench feed`, each in a process of its own: a feed as `actscope feed` runs it, and a bare uvicorn.

python -m actscope.bench.support.feed_servers BYTES ANSWERS     runs the bare server, which prints its port
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actscope.errors import FeedError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from actscope.feed.client.client import FeedClient  # torch: the bare server needs none

CHUNK = 1 << 20
WIDTH = 2048
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Feed:
    """A running feed. It may not have rows yet."""

    url: str
    token: str


@contextmanager
def feed(**settings: str | float | Path) -> Iterator[Feed]:
    """Run `actscope feed` with these settings, on a free port, for the duration of the block."""
    given = {f"ACTSCOPE_FEED_{name.upper()}": str(value) for name, value in settings.items()}
    environment = os.environ | given | {"ACTSCOPE_TOKEN": secrets.token_urlsafe(16)}
    command = [sys.executable, "-m", "actscope", "feed", "--port", "0", "--json", "--log-level", "error"]
    with _child(command, environment) as said:
        start = json.loads(said)
        yield Feed(start["url"], start["token"])


def settle(client: FeedClient) -> None:
    """Wait until all windows are full, so that the generator is idle. An epoch's last window is full with fewer rows."""
    while any(window["state"] != "ready" for window in client.wait_for_data()["windows"]):
        time.sleep(_LOOK_S)  # the feed does not notify: poll


@contextmanager
def bare(n_bytes: int, n_answers: int) -> Iterator[str]:
    """Run a server that returns `n_answers` different responses of `n_bytes` each, in rotation. Yields its URL."""
    with _child([sys.executable, "-m", "actscope.bench.support.feed_servers", str(n_bytes), str(n_answers)]) as said:
        yield f"http://127.0.0.1:{int(said)}"


@contextmanager
def _child(command: list[str], environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run a command for the duration of the block. Yields the first line that it prints.

    Raises FeedError, with the end of its standard error, if it exits without printing a line.
    """
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=complaints, text=True) as child,
    ):
        try:
            assert child.stdout is not None
            said = child.stdout.readline()
            if not said:
                child.wait()
                complaints.seek(0)
                raise FeedError(f"{' '.join(command[1:4])} ended at its start: {complaints.read()[-1000:]}")
            yield said
        finally:
            child.terminate()


def make_wide_model(folder: Path) -> Path:
    """Save a random Llama with the built-in tokenizer.

    Its rows have width `WIDTH`, but it has a single narrow layer, so that it fills a buffer quickly.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from actscope.engines import builtin

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(builtin.model_path())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class _Bare:
    """ASGI application that sends responses from memory in chunks of 1 MiB. They rotate, so that none stays in CPU caches."""

    def __init__(self, n_bytes: int, n_answers: int) -> None:
        self._head = [(b"content-length", str(n_bytes).encode())]
        self._answers = [
            [os.urandom(min(CHUNK, n_bytes - start)) for start in range(0, n_bytes, CHUNK)] for _ in range(n_answers)
        ]
        self._turn = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._turn = (self._turn + 1) % len(self._answers)
        await send({"type": "http.response.start", "status": 200, "headers": self._head})
        for chunk in self._answers[self._turn]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def main(n_bytes: int, n_answers: int) -> None:
    import uvicorn

    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        _Bare(n_bytes, n_answers), loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False,
        log_level="error",
    )  # fmt: skip
    print(sock.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
