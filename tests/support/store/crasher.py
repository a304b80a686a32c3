"""A process that writes until it is killed, and tells through a pipe what has been acknowledged."""

from __future__ import annotations

import os
import random
from multiprocessing.connection import Connection

from support.store.parts import CHANNELS, put

from actscope.store import Store, StoreOptions

MOST = 20_000


def main(path: str, seed: int, pipe: Connection) -> None:
    """Create or resume the recording, then append until the end. Sends "ready", then (written, durable) as two numbers."""
    chance = random.Random(seed)
    options = StoreOptions(
        segment_bytes=chance.choice([1 << 16, 1 << 18, 1 << 22]),
        buffer_bytes=chance.choice([1 << 14, 1 << 16, 1 << 20]),
        direct=chance.choice(["auto", "no"]),
        commit_seconds=chance.choice([0.002, 0.02, 1.0]),
    )
    if os.path.exists(path):
        store = Store.resume(path, options=options)
    else:
        store = Store.create(path, manifest={"seed": seed}, channels=CHANNELS, options=options)
    pipe.send_bytes(b"ready")
    number = store.written
    while True:
        number = put(store, number + 1, MOST)
        dice = chance.random()
        if dice < 0.03:
            store.sync()
        elif dice < 0.06:
            store.wait_written(number)
        if dice < 0.2:
            durable, written = store.durable, store.written
            pipe.send_bytes(f"{written} {durable}".encode())
