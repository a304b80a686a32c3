"""The generator's process: `python -m actscope.feed.generator FD`, started by the feed's server, with a socket to it.

It ends when the socket does, in the middle of a forward pass too: a generator never outlives its server.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from actscope.engines.reading.contract import Reader
from actscope.engines.reading.cutting import Cutter, tokenizer_of
from actscope.engines.reading.opening import open_reader
from actscope.engines.reading.stream import Stream
from actscope.engines.reading.texts import open_texts
from actscope.errors import ActscopeError, EngineError
from actscope.feed.generator.filling import Filler
from actscope.feed.layout import Layout
from actscope.feed.memory import FeedMemory
from actscope.feed.messages import (
    FROM_GENERATOR,
    TO_GENERATOR,
    Beat,
    Failed,
    FillWindow,
    FromGenerator,
    Loaded,
    Loading,
    Memory,
    Progress,
    Start,
)
from actscope.feed.settings import FeedSettings

_BEAT_S = 1.0
_TELL_S = 0.2

Tell = Callable[[FromGenerator], None]


class _Server:
    """The other end of the socket. `tell` is for any thread; orders are read on one of their own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self.memories: queue.Queue[tuple[Memory, int]] = queue.Queue()
        self.orders: queue.Queue[FillWindow] = queue.Queue()

    def tell(self, message: FromGenerator) -> None:
        with self._sending:
            FROM_GENERATOR.send(self._connection, message)

    def start(self) -> FeedSettings:
        """The first message; then orders and heartbeats run on threads."""
        message = TO_GENERATOR.receive(self._connection)
        if not isinstance(message, Start):
            raise EngineError(f"the feed's generator: expected its settings, found {type(message).__name__}")
        settings = msgspec.json.decode(message.settings, type=FeedSettings)
        threading.Thread(target=self._hear, name="actscope-orders", daemon=True).start()
        threading.Thread(target=self._beat, name="actscope-beat", daemon=True).start()
        return settings

    def _hear(self) -> None:
        while True:
            message, fd = TO_GENERATOR.receive_with(self._connection)
            if message is None:
                os._exit(0)  # the server has gone: at once, whatever the model is doing
            if isinstance(message, Memory) and fd is not None:
                self.memories.put((message, fd))
            elif isinstance(message, FillWindow):
                self.orders.put(message)

    def _beat(self) -> None:
        while True:
            try:
                self.tell(Beat())
            except OSError:
                os._exit(0)
            time.sleep(_BEAT_S)


def run(server: _Server, settings: FeedSettings) -> None:
    """Load, then fill what is asked for, for ever. Raises ActscopeError."""
    server.tell(Loading(f"opening {settings.dataset}"))
    texts = open_texts(settings.dataset, split=settings.split, column=settings.column, n=settings.texts or None)
    server.tell(Loading(f"loading {settings.model}"))
    reader = open_reader(
        settings.engine,  # type: ignore[arg-type]  # FeedSettings has checked it
        settings.model,
        settings.sites,
        dtype=settings.dtype,
        batch_tokens=settings.batch_tokens,
        context=settings.context,
        device=settings.device,
        threads=settings.threads,
    )
    cutter = Cutter(tokenizer_of(settings.model), context=settings.context, mask=settings.mask)  # type: ignore[arg-type]
    stream_of = partial(_stream, texts, cutter, settings)
    facts = reader.facts
    server.tell(
        Loaded(
            pid=os.getpid(),
            engine=facts.engine,
            model=facts.model,
            revision=facts.revision,
            sites=list(facts.sites),
            width=facts.d_model,
            dtype=facts.dtype,
            deterministic=getattr(facts, "deterministic", True),
            dataset=texts.name,
            fingerprint=texts.fingerprint,
            n_texts=len(texts),
        )
    )
    described, fd = server.memories.get()
    memory = FeedMemory.attach(fd, Layout(*msgspec.structs.astuple(described)), writable=True)
    filler = Filler(reader, stream_of, memory, seed=settings.seed, shuffle=settings.shuffle)
    while True:
        order = server.orders.get()
        server.tell(filler.fill(order, _progress(server.tell, order.window, reader)))


def _stream(texts: object, cutter: Cutter, settings: FeedSettings, epoch: int) -> Stream:
    return Stream(
        texts,  # type: ignore[arg-type]
        cutter,
        seed=settings.seed,
        epoch=epoch,
        chunk_texts=settings.chunk_texts,
        shuffle=settings.shuffle,
    )


def _progress(tell: Tell, window: int, reader: Reader) -> Callable[[int], None]:
    told = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            tell(Progress(window, rows, float(getattr(reader, "padding", 0.0))))

    return progress


def main() -> None:
    """Run until the server goes. What cannot be mended by starting again is told as fatal; a crash is seen by the server."""
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    settings = server.start()
    try:
        run(server, settings)
    except EngineError as error:
        server.tell(Failed(str(error), fatal=False))
    except (ActscopeError, OSError) as error:
        server.tell(Failed(str(error), fatal=True))
    except KeyboardInterrupt:  # the terminal's Ctrl-C goes to the whole group; the server ends us in its own time
        threading.Event().wait()
    sys.exit(1)


if __name__ == "__main__":
    main()
